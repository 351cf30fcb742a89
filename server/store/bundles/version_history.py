"""Which version of a model serves next, and which served before, across restarts."""

from pathlib import Path

from server.store.bundles.choices import (
    VersionChoice,
    candidates,
    history_before,
    read_choice,
    write_choice,
)
from server.store.bundles.layout import versions_of
from server.store.bundles.records import MOST_HISTORY, ModelRecord


class VersionHistory:
    """The succession of every model in `folder`; to be asked by whoever has the turn to load,
    except for `order` and `pinned`."""

    def __init__(self, folder: Path, default: str, pinned: int | None) -> None:
        """`pinned` is the only version of the model `default` that may serve, if any."""
        self._folder, self._default, self._pinned = folder, default, pinned

    def pinned(self, name: str) -> int | None:
        """The only version of `name` that may serve; None where it is not pinned."""
        return self._pinned if name == self._default else None

    def order(self, name: str) -> tuple[int, ...]:
        """The versions of `name` that may serve, in the order in which they are tried."""
        choice = read_choice(self._folder / name)
        return candidates(versions_of(self._folder, name), choice, self.pinned(name))

    def first(self, name: str, record: ModelRecord) -> int | None:
        """The version that would serve once the model is loaded; None where none may."""
        first = next((n for n in self.order(name) if not record.refused(n)), None)
        if first is not None:
            self.recall(name, record, first)
        return first

    def before(self, name: str, record: ModelRecord, now: int | None) -> tuple[int, ...]:
        """The versions that a rollback from `now` tries, in that order: those that served, the
        last one first, then the lower ones that were not passed over."""
        choice = read_choice(self._folder / name)
        served = [n for n in reversed(record.history) if n != now]
        present = versions_of(self._folder, name)
        passed = choice.skip if choice else ()
        lower = [n for n in present if now is not None and n < now and n not in passed]
        return tuple(dict.fromkeys(n for n in (*served, *lower) if n in present))

    def recall(self, name: str, record: ModelRecord, version: int) -> None:
        """Takes up, once after a start, the history that was kept of a model of which `version` is
        the first to serve."""
        choice = read_choice(self._folder / name)
        present = versions_of(self._folder, name)
        if choice is not None and not record.recalled:
            record.recalled = True
            record.history = history_before(version, choice, present)[-MOST_HISTORY:]

    def took_over(self, name: str, record: ModelRecord, version: int) -> None:
        """Keeps that `version` took over by itself, so that a rollback after a restart knows what
        served before; what a person passed over stays so."""
        choice = read_choice(self._folder / name)
        # It is kept from now on, so there is nothing to be taken up.
        record.recalled = True
        skip = choice.skip if choice else ()
        write_choice(self._folder / name, VersionChoice(version, skip, tuple(record.history)))

    def choose(self, name: str, record: ModelRecord, version: int) -> None:
        """Keeps that a person chose `version`, and passed over the newer ones that may serve."""
        present = versions_of(self._folder, name)
        passed = tuple(n for n in present if n > version and not record.refused(n))
        write_choice(self._folder / name, VersionChoice(version, passed, tuple(record.history)))
