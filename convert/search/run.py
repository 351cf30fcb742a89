"""A search from its first candidate to the choice, within its time."""

import time
from functools import partial

from convert.search.clock import Clock, Watch
from convert.search.judging import Bench
from convert.search.study import Best, Study
from convert.terminal import Terminal
from server.values.wording import counted

# What converting, judging and writing the bundle may take.
BUILD_SECONDS = 60.0
LOG = "search.log"


def search(
    study: Study, bench: Bench, clock: Clock, trials: int | None, terminal: Terminal
) -> Best:
    """Try candidates until `trials` of them were judged or stopped, or the clock leaves no more
    than the training of the best on all frames needs. Return the best.

    The first one is judged to its end, whatever the clock says.
    """
    if clock.goes_on:
        done, left = counted(study.finished, "candidate"), clock.left / 60
        terminal.say(f"going on after {done}, with {left:.1f} minutes left")
    best = study.best()
    while best is None or trials is None or study.finished < trials:
        reserve = None
        if best is not None:
            reserve = _final_seconds(study, bench.folds) + BUILD_SECONDS
            if clock.left < reserve:
                break
        watch = Watch(bench.work / LOG, clock, reserve)
        judge = partial(bench.judge, terminal=watch)
        terminal.say(study.run(judge, time.monotonic))
        clock.tick()
        best = study.best()
    return best


def _final_seconds(study: Study, folds: int) -> float:
    """Return about how long the best candidate takes on all frames: each of its folds learned from
    all but one part of them."""
    chosen = next(each for each in study.tried() if each.state == "chosen")
    return chosen.seconds / (folds - 1)
