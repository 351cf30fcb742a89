"""The Optuna study of a search, in a file of its work folder, so that a killed search goes on."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from convert.search.clock import TimeOverError
from convert.search.networks import Network
from convert.search.space import Candidate, Space
from convert.search.trail import Setting, State, Tried

JOURNAL = "study.jsonl"
_NAME = "search"
# Of the candidates that come to a rung, one in this many goes on to the next, this many times as
# far: Li et al., «A system for massively parallel hyperparameter tuning», 2020 (arXiv:1810.05934).
REDUCTION = 3
# Trials that are drawn at random before what was found guides them.
_RANDOM_TRIALS = 8
# Networks that are tried first as `convert train` would train them, the slowest first.
_DEFAULTS_FIRST = 3
_RESULT = "result"


class Judged(msgspec.Struct, frozen=True):
    """A candidate on `folds` folds, wholly or in part: of their `frames` it named `hits` right.
    loss: mean cross entropy in nats. epoch: that a training on all frames should end with."""

    folds: int
    hits: int
    frames: int
    loss: float
    epoch: int = 0

    @property
    def score(self) -> float:
        """Return the share of hits, and of equal ones more for a lower loss, which never counts as
        much as a frame."""
        # Not by `min`, which would let a loss that is not a number through.
        loss = self.loss if self.loss < 10 else 10.0
        return self.hits / self.frames - loss / 100 / self.frames


# Told after each epoch of a candidate: its number from 1 on over all folds, and what it reached.
# It raises optuna.TrialPruned to end the candidate.
OnStep = Callable[[int, Judged], None]


@dataclass(frozen=True, slots=True)
class Best:
    """The candidate that was chosen, and how it was judged."""

    number: int
    candidate: Candidate
    judged: Judged


class Study:
    """Asks for candidates, keeps what they reached, and chooses the best.

    work: the folder of the study's file, which no other process uses meanwhile. steps: epochs of
    all folds of one candidate.
    """

    def __init__(self, work: Path, space: Space, times: dict[Network, float], steps: int) -> None:
        self._space, self._times = space, times
        # It is told on standard error otherwise, in the middle of our lines.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file = work / JOURNAL
        _repair(file)
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(file))),
            study_name=_NAME,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=max(1, steps // REDUCTION**2), reduction_factor=REDUCTION
            ),
        )
        trials = self._study.get_trials(deepcopy=False)
        # A sampler that goes on begins with other numbers, or it would ask for the same again.
        self._study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_RANDOM_TRIALS, seed=space.base.seed + len(trials)
        )
        self._queue: list[dict[str, Any]] = []
        for broken in trials:
            if broken.state == TrialState.RUNNING:
                self._study.tell(broken.number, state=TrialState.FAIL)
                if asked := _asked(broken):
                    self._queue.append(asked)
        slowest = sorted(space.networks, key=lambda each: -times[each])
        self._queue += [
            wanted
            for wanted in map(space.defaults, slowest[:_DEFAULTS_FIRST])
            if not any(_asked(each) and wanted.items() >= _asked(each).items() for each in trials)
        ]

    @property
    def finished(self) -> int:
        """Return how many candidates were judged or stopped."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return len(self._study.get_trials(deepcopy=False, states=states))

    def run(self, judge: Callable[[Candidate, OnStep], Judged], now: Callable[[], float]) -> str:
        """Have one candidate judged, and return a line about it.

        judge: gets the candidate and what to tell after each epoch; what it
        raises but optuna.TrialPruned comes out of this method, and the candidate is asked for again
        by the next Study of the folder, unless it is TimeOverError. now: seconds.
        """
        if self._queue:
            self._study.enqueue_trial(self._queue.pop(0))
        trial = self._study.ask()
        candidate = self._space.suggest(trial)
        trial.set_user_attr("settings", candidate.settings())
        begin, latest = now(), list[Judged]()

        def on_step(step: int, reached: Judged) -> None:
            latest[:] = [reached]
            trial.report(reached.score, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        state, why = TrialState.COMPLETE, "judged"
        try:
            latest[:] = [judge(candidate, on_step)]
        except optuna.TrialPruned:
            state, why = TrialState.PRUNED, "stopped"
        except TimeOverError:
            state, why = TrialState.FAIL, "unfinished"
        if latest:
            trial.set_user_attr(_RESULT, msgspec.to_builtins(latest[0]))
        trial.set_user_attr("seconds", now() - begin)
        score = latest[0].score if state == TrialState.COMPLETE else None
        self._study.tell(trial, score, state=state)
        right = f", {latest[0].hits} of {latest[0].frames} right" if latest else ""
        return f"trial {trial.number + 1}: {candidate.network}, {why}{right}"

    def best(self) -> Best | None:
        """Return the candidate that was judged on all folds and named most frames right; None if
        there is none yet."""
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not done:
            return None
        best = max(done, key=lambda each: (each.value or 0.0, -each.number))
        candidate = self._space.suggest(optuna.trial.FixedTrial(best.params))
        return Best(best.number, candidate, _judged(best))

    def tried(self) -> list[Tried]:
        """Return everything that was tried until now, in its order."""
        best = self.best()
        chosen = None if best is None else best.number
        trials = self._study.get_trials(deepcopy=False)
        return [self._tried(each, chosen) for each in trials if "settings" in each.user_attrs]

    def _tried(self, trial: FrozenTrial, chosen: int | None) -> Tried:
        states: dict[TrialState, State] = {
            TrialState.COMPLETE: "chosen" if trial.number == chosen else "judged",
            TrialState.PRUNED: "stopped",
        }
        settings: dict[str, Setting] = trial.user_attrs["settings"]
        names = ("alpha", "size", "mode", "light")
        network = Network(*(settings[name] for name in names))  # type: ignore[arg-type]
        found = _judged(trial) if _RESULT in trial.user_attrs else Judged(0, 0, 0, 0.0)
        return Tried(
            number=trial.number + 1,
            state=states.get(trial.state, "unfinished"),
            settings=settings,
            latency=self._times[network],
            folds=found.folds,
            hits=found.hits,
            frames=found.frames,
            seconds=trial.user_attrs.get("seconds", 0.0),
        )


def _asked(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters of a trial, also of one that was killed before it took those that it
    was enqueued with."""
    enqueued: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    return {**enqueued, **trial.params}


def _judged(trial: FrozenTrial) -> Judged:
    found: Any = trial.user_attrs[_RESULT]
    return msgspec.convert(found, Judged)


def _repair(file: Path) -> None:
    """Cut off the line that a kill left unfinished at the end of a journal, and the lock that it
    left behind. The work folder is this process's alone."""
    for lock in file.parent.glob(f"{file.name}.lock*"):
        lock.unlink()
    if not file.exists():
        return
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(file, whole)
