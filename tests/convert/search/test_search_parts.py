"""The parts of a search that need no training: its space, time, study, device and table."""

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from convert.errors import ConvertError
from convert.evaluation.charts import search_png
from convert.search.clock import Clock, TimeOverError, Watch
from convert.search.device import Reference, device_times, read_device, references
from convert.search.kept import kept
from convert.search.latency import Times, measure_networks, within_budget
from convert.search.networks import Network
from convert.search.space import Candidate, Resize, Space, available_starts
from convert.search.study import JOURNAL, Judged, OnStep, Study
from convert.search.trail import State, Trail, Tried, csv_text, lines, pareto, too_slow
from convert.terminal import Terminal
from convert.training.network import backbone_file
from convert.training.train import Options

NETWORKS = (Network(0.35, 96), Network(0.5, 160), Network(1.0, 224))
TIMES = {NETWORKS[0]: 1.0, NETWORKS[1]: 2.0, NETWORKS[2]: 4.0}
STARTS: dict[tuple[float, int], Any] = {
    (0.35, 96): ("none",),
    (0.5, 160): ("imagenet-224", "slice"),
    (1.0, 224): ("imagenet",),
}
SPACE = Space(NETWORKS, STARTS, Options(epochs=3))


def judge_by(value: dict[float, int], asked: list[Candidate]) -> Any:
    """A judge that names `value` of 100 frames right, by alpha, on both of two folds."""

    def judge(candidate: Candidate, on_step: OnStep) -> Judged:
        asked.append(candidate)
        hits = value[candidate.network.alpha]
        for fold in (1, 2):
            on_step(fold, Judged(fold, hits * fold // 2, 50 * fold, 0.1))
        return Judged(2, hits, 100, 0.1, 2)

    return judge


def test_a_study_begins_with_what_train_would_do(tmp_path: Path) -> None:
    """The slowest networks come first, trained by the defaults."""
    asked: list[Candidate] = []
    study = Study(tmp_path, SPACE, TIMES, 2)
    for _ in range(3):
        study.run(judge_by({0.35: 60, 0.5: 80, 1.0: 90}, asked), lambda: 0.0)
    assert [each.network for each in asked] == list(reversed(NETWORKS))
    options = asked[0].options
    assert (options.weights, options.peak_rate, options.frozen) == ("imagenet", 3e-5, 3)
    assert (asked[1].options.weights, asked[2].options.weights) == ("imagenet-224", "none")
    assert asked[2].options.peak_rate == 1e-3
    assert (asked[0].resize, options.mixup, options.smoothing) == ("stretch", 0, 0)
    assert options.augmentation == SPACE.base.augmentation


def test_the_best_of_a_study_comes_back(tmp_path: Path) -> None:
    """A study that is opened again has the same best, and stops what is worse."""
    asked: list[Candidate] = []
    judge = judge_by({0.35: 60, 0.5: 80, 1.0: 90}, asked)
    for _ in range(6):
        Study(tmp_path, SPACE, TIMES, 2).run(judge, lambda: 0.0)
    study = Study(tmp_path, SPACE, TIMES, 2)
    assert study.finished == 6
    best = study.best()
    assert best is not None
    assert best.candidate.network.alpha == 1.0
    assert (best.judged.hits, best.judged.epoch) == (90, 2)
    states = {each.state for each in study.tried() if each.settings["alpha"] == 0.35}
    assert states == {"stopped"}
    # None was asked for twice.
    assert len({repr(each) for each in asked}) == 6


def test_a_broken_off_trial_is_asked_for_again(tmp_path: Path) -> None:
    asked: list[Candidate] = []

    def broken(candidate: Candidate, on_step: OnStep) -> Judged:
        asked.append(candidate)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Study(tmp_path, SPACE, TIMES, 2).run(broken, lambda: 0.0)
    # A kill may leave a half-written line, and the lock of its writer.
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"op_code": 5, "wor')
    (tmp_path / f"{JOURNAL}.lock").symlink_to(tmp_path / JOURNAL)
    study = Study(tmp_path, SPACE, TIMES, 2)
    assert study.finished == 0
    study.run(judge_by({1.0: 90}, asked), lambda: 0.0)
    assert asked[0] == asked[1]
    assert [each.state for each in study.tried()] == ["unfinished", "chosen"]


def test_a_kill_before_the_first_step_loses_no_default(tmp_path: Path) -> None:
    """A trial that was asked for, but took no parameters yet, is asked for with them again."""
    Study(tmp_path, SPACE, TIMES, 2)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL)))
    broken = optuna.load_study(study_name="search", storage=storage)
    broken.enqueue_trial(SPACE.defaults(NETWORKS[2]))
    broken.ask()
    asked: list[Candidate] = []
    study = Study(tmp_path, SPACE, TIMES, 2)
    for _ in range(3):
        study.run(judge_by({0.35: 60, 0.5: 80, 1.0: 90}, asked), lambda: 0.0)
    assert [each.network for each in asked] == list(reversed(NETWORKS))


def test_what_was_found_at_the_begin_stays(tmp_path: Path) -> None:
    """Weights that come later do not change a search that goes on."""
    kind, file = list[tuple[float, tuple[str, ...]]], tmp_path / "starts.json"
    found: list[tuple[float, tuple[str, ...]]] = [(0.5, ("slice",))]
    assert kept(file, kind, lambda: found) == found
    assert kept(file, kind, lambda: [(0.5, ("imagenet", "slice"))]) == found
    file.write_text("[")
    assert kept(file, kind, list) == []
    assert kept(file, kind, lambda: found, bool) == found
    assert kept(file, kind, list, lambda each: each == found) == found
    with pytest.raises(ConvertError, match=r"starts\.json can't be written"):
        kept(tmp_path / "nowhere" / "starts.json", kind, list)


def test_weights_of_224_fit_224(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One option serves all sizes, that of the weights too."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / backbone_file(1.0, 224)).touch()
    for size in (96, 224):
        assert available_starts(1.0, size, "imagenet-224") == ("imagenet-224",)
    assert available_starts(1.0, 224) == ("imagenet",)
    with pytest.raises(ConvertError, match=r"are not on this machine for alpha 0\.5 at 96"):
        available_starts(0.5, 96, "imagenet-224")


def test_equal_hits_are_ordered_by_loss() -> None:
    """A lower loss decides between equal hits, and never against a frame."""
    assert Judged(2, 9, 10, 0.2).score > Judged(2, 9, 10, 0.3).score
    assert Judged(2, 9, 10, float("nan")).score == Judged(2, 9, 10, 10.0).score
    assert Judged(2, 9, 10, 99.0).score > Judged(2, 8, 10, 0.0).score


def test_a_teacher_teaches_only_what_is_fed_like_it() -> None:
    params = SPACE.defaults(NETWORKS[1]) | {"teacher": True}
    inputs: tuple[tuple[Resize, bool], ...] = (("stretch", True), ("crop", False))
    for resize, has in inputs:
        taught = frozenset({(160, resize)})
        space = Space(NETWORKS, STARTS, SPACE.base, teacher=Path("teacher"), taught=taught)
        candidate = space.suggest(optuna.trial.FixedTrial(params))
        assert (candidate.options.teacher is not None) is has


def test_the_clock_goes_on_after_a_kill(tmp_path: Path) -> None:
    now = [100.0]
    file = tmp_path / "spent.json"
    clock = Clock(file, 60, lambda: now[0])
    now[0] = 120.0
    clock.tick()
    now[0] = 5.0
    again = Clock(file, 60, lambda: now[0])
    now[0] = 15.0
    assert (again.spent, again.left) == (30, 30)
    watch = Watch(tmp_path / "log", again, 20)
    watch.say("epoch 1")
    now[0] = 26.0
    with pytest.raises(TimeOverError):
        watch.say("epoch 2")
    Watch(tmp_path / "log", again, None).say("epoch 3")
    assert (tmp_path / "log").read_text() == "epoch 1\nepoch 2\nepoch 3\n"


def test_a_budget_divides_the_networks() -> None:
    fit, slow = within_budget(TIMES, 2.0)
    assert (list(fit), list(slow)) == ([NETWORKS[0], NETWORKS[1]], [NETWORKS[2]])
    with pytest.raises(ConvertError, match=r"0\.9 is less than .* 0\.35@96 dynamic takes 1\.00 ms"):
        within_budget(TIMES, 0.9)


def test_a_device_is_as_much_slower_as_its_reference(shipped: Path, tmp_path: Path) -> None:
    """The device's file names a bundle, which is found by its digest; its ratio counts for networks
    of the same arithmetic."""
    manifest = json.loads((shipped / "bundle.json").read_text())
    figures = {
        "model": "parts",
        "version": 1,
        "sha256": manifest["sha256"]["model.tflite"],
        "machine": "Raspberry Pi 5",
        "runtime": "LiteRT",
        "stages": {"sample": {"decode": {}, "inference": {"median": 30.0, "p90": 31.0}}},
    }
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(figures))
    found, name = references([file], [tmp_path, shipped.parents[1]])
    assert name == "Raspberry Pi 5, LiteRT"
    assert list(found) == ["dynamic"]
    assert found["dynamic"].model == (shipped / "model.tflite").read_bytes()
    both = (NETWORKS[0], Network(0.35, 96, "int8"))
    times = Times({str(each): 2.0 for each in both}, {"dynamic": 5.0})
    assert device_times(times, both, found) == {NETWORKS[0]: 12.0}
    floats = {"float32": Reference(b"", "float32", 9.0)}
    half = Network(0.35, 96, "float16")
    assert device_times(Times({str(half): 2.0}, {"float32": 3.0}), [half], floats) == {half: 6.0}
    shutil.copy(file, tmp_path / "other.json")
    with pytest.raises(ConvertError, match="two figures of a model whose mode is dynamic"):
        references([file, tmp_path / "other.json"], [shipped.parents[1]])
    with pytest.raises(ConvertError, match=r"parts/1, which is not in .* copy the device's bundle"):
        references([file], [tmp_path])


def test_kept_latencies_that_lack_a_network_are_not_used() -> None:
    times = Times({str(NETWORKS[0]): 1.0, str(NETWORKS[1]): 2.0}, {"dynamic": 5.0})
    assert times.has(NETWORKS[:2], ["dynamic"])
    assert not times.has(NETWORKS, ["dynamic"])
    assert not times.has(NETWORKS[:2], ["float32"])


def test_even_light_is_counted_in_a_latency() -> None:
    pair = (Network(0.35, 32), Network(0.35, 32, light="even"))
    times = measure_networks(pair, 2, {}, 0.05, Terminal())
    assert 0 < times.networks["0.35@32 dynamic"] < times.networks["0.35@32 dynamic in even light"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no JSON", "is not what .* writes: "),
        ('{"model": "parts"}', "missing required field `version`"),
        (
            '{"model": "a", "version": 1, "sha256": "", "machine": "", "runtime": "",'
            ' "stages": {}}',
            "it has no figures of the frame sample",
        ),
    ],
)
def test_a_wrong_device_file_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "bench.json"
    file.write_text(text)
    with pytest.raises(ConvertError, match=problem):
        read_device(file)


def tried(number: int, state: State, latency: float, hits: int) -> Tried:
    params = SPACE.defaults(NETWORKS[1]) | {"network": str(NETWORKS[1])}
    settings = SPACE.suggest(optuna.trial.FixedTrial(params)).settings()
    return Tried(number, state, settings, latency, 2, hits, 100)


def test_the_front_has_what_none_beats_in_both() -> None:
    a, b, c = (
        tried(n, "judged", ms, hits) for n, (ms, hits) in enumerate(((1, 80), (2, 80), (3, 90)))
    )
    stopped = tried(3, "stopped", 0.5, 99)
    assert pareto([c, stopped, b, a]) == [a, c]


def test_the_table_names_what_was_chosen_first() -> None:
    trail = Trail(
        5.0,
        "measured here",
        2,
        "a fifth",
        60,
        (
            tried(1, "judged", 2, 80),
            tried(2, "chosen", 3, 90),
            tried(3, "stopped", 1, 10),
            too_slow(NETWORKS[2], 9),
        ),
    )
    assert trail.trials == 3
    head, first, *others = lines(trail)
    assert head.split()[:3] == ["network", "state", "top-1"]
    assert first.startswith("0.5@160 dynamic")
    assert "chosen, front" in first
    assert "90.00%  82.6% to 94.5%" in first
    assert len(others) == 2
    assert [row.split(",")[:2] for row in csv_text(trail).splitlines()[1:]] == [
        ["2", "chosen"],
        ["1", "judged"],
        ["3", "stopped"],
        ["", "over budget"],
    ]
    assert search_png(trail).startswith(b"\x89PNG")
