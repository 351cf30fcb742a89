"""The pool that lends the sessions of a model's engine, so that each has one user at a time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from server.recognition.engines.engine import EngineOptions, Session, find_engine
from server.recognition.manifest import read_model


class InterpreterPool:
    """Lends the sessions of one model, here called interpreters, each to one borrower at a time.

    engine: that runs the model. `_free` guards `_idle` and `_wide`; the interpreter that came back
    last is lent first, while its tensors are still in the cache.
    """

    def __init__(
        self,
        model: Path,
        size: int,
        threads: int = 1,
        wide: int = 0,
        options: EngineOptions | None = None,
    ) -> None:
        """Makes `size` interpreters of `threads` threads each and, if `wide` is not 0, one more of
        `wide` threads for a frame that has the machine to itself.

        options: say which engine runs the model, and how; by default the usual one of its file.
        Raises BundleError if the engine is not installed or can't run the model.
        """
        self.size = size
        self.wide = wide
        self._free = threading.Condition()
        self.engine = find_engine(model, options)
        content = read_model(model)
        self._idle = list(self.engine.load(model, content, threads, size))
        self._wide = list(self.engine.load(model, content, wide, 1)) if wide else []
        self.inputs = self._idle[0].inputs
        self.outputs = self._idle[0].outputs

    @property
    def busy(self) -> int:
        """Interpreters lent out at this moment."""
        return self.size + bool(self.wide) - len(self._idle) - len(self._wide)

    @contextmanager
    def lease(self, *, alone: bool = False) -> Iterator[Session]:
        """Lends an interpreter for the `with` block; waits for it as long as it takes.

        alone: no other frame is being worked on, so the wide interpreter is lent if there is one.
        """
        with self._free:
            interpreters = self._wide if alone and self._wide else self._idle
            while not interpreters:
                self._free.wait()
            interpreter = interpreters.pop()
        try:
            yield interpreter
        finally:
            with self._free:
                interpreters.append(interpreter)
                self._free.notify_all()  # threads that wait may want the other list

    def each(self, use: Callable[[Session], object]) -> None:
        """Lends every interpreter once, all of them at the same time, to `use`."""
        with ExitStack() as leases:
            lent = [leases.enter_context(self.lease()) for _ in range(self.size)]
            if self.wide:
                lent.append(leases.enter_context(self.lease(alone=True)))
            for interpreter in lent:
                use(interpreter)

    def close(self) -> None:
        """Frees the interpreters. Only for a pool that no one will borrow from again."""
        with self._free:
            self._idle.clear()
            self._wide.clear()
