"""A progress bar with the time left, and lines of text above it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[], None]


class Terminal:
    """Writes to standard output: a moving bar on a terminal, in a log file a line at its start."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """One line of text; above the bar, while there is one."""
        self._console.print(line, markup=False)

    @contextmanager
    def bar(self, text: str, total: int, done: int = 0) -> Iterator[Advance]:
        """A bar of `total` steps, `done` of them already; calling the result advances it by one."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        shown = self._console.is_terminal and total > 0
        if not shown and total > 0:
            self.say(text)
        with Progress(*columns, console=self._console, disable=not shown) as progress:
            task = progress.add_task(text, total=total, completed=done)
            yield lambda: progress.advance(task)
