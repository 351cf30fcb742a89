"""The parts that outputs which are servers share: an event loop in a thread of its own, and the
result that clients see until one of them acknowledges it."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from server.line.outputs.base import OutputError

logger = logging.getLogger(__name__)

START_TIMEOUT_S, STOP_TIMEOUT_S = 30.0, 3.0


class ServerThread:
    """Runs `serve` until the event that it gets is set. It calls the function that it gets once it
    listens, and raises OutputError if it can't."""

    def __init__(
        self,
        name: str,
        serve: Callable[[Callable[[], None], asyncio.Event], Coroutine[Any, Any, None]],
    ) -> None:
        self._name = name
        self._serve = serve
        self._begun = threading.Event()
        self._failure = ""
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Return once the server listens. Raises OutputError if it does not."""
        self._thread.start()
        if not self._begun.wait(START_TIMEOUT_S):
            self.stop()
            raise OutputError("its server does not start")
        if self._failure:
            self._thread.join()
            raise OutputError(self._failure)

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                self._loop.set_exception_handler(self._log_failure)
                runner.run(self._main())
        except OutputError as error:
            self._failure = str(error)
        except Exception as error:
            self._failure = type(error).__name__
            fields = {"server": self._name}
            logger.exception("a server of an output failed", extra={"fields": fields})
        finally:
            self._begun.set()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        await self._serve(self._begun.set, self._stop)

    def _log_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        fields = {"server": self._name, "reason": str(context.get("message"))}
        logger.error("a server of an output failed", extra={"fields": fields})

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, None], timeout_s: float) -> None:
        """Have the loop run `work`. Raises OutputError if it can't in time."""
        if self._loop is None or not self.alive:
            work.close()
            raise OutputError("its server has ended")
        try:
            asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)
        except TimeoutError:
            raise OutputError("its server does not answer") from None

    def stop(self) -> None:
        if self._loop is not None and self._stop is not None and self.alive:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(STOP_TIMEOUT_S)


class ShownResult:
    """The result that clients see, and whether one of them has taken it.

    `_lock` guards `seq`, the result's sequence number, 0 for none, with its acknowledgement: one
    acknowledgement may come twice, the second while the next result is put in its place.
    """

    def __init__(self) -> None:
        self.seq = 0
        self._lock = threading.Lock()
        self._taken = threading.Event()

    def show(self, seq: int, put: Callable[[], object] = lambda: None) -> None:
        """Have `seq` wait for its acknowledgement, once `put` has put it in its place."""
        with self._lock:
            self._taken.clear()
            self.seq = seq
            put()

    def acknowledge(
        self, matches: Callable[[int], bool], clear: Callable[[], object] = lambda: None
    ) -> None:
        """Note that a client has taken the result, and call `clear`, if `matches` its number."""
        with self._lock:
            if self.seq and matches(self.seq):
                clear()
                self._taken.set()

    def await_taken(self, timeout_s: float) -> bool:
        """Return whether the result is taken within `timeout_s`."""
        return self._taken.wait(timeout_s)
