"""A classifier that says how familiar a frame is: an unfamiliar one never passes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from images import encode, plain
from job_workers import settled
from server_process import LiveServer, live_server
from tiny_models import COLORS, RECIPE, MakeModel, change_manifest, write_bundle

from server.errors import BundleError
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import DevicePolicy, Familiarity, VerdictPolicy, read_bundle
from server.recognition.recognizer import Recognizer
from server.recognition.tensor_model import make_model

FAMILIARITY = Familiarity(
    false_unfamiliar=0.005, learned_from=100, held_back=100, held_back_unfamiliar=0.0
)
BRIGHT, DARK = (encode(plain((0, level, 0)), "PNG") for level in (250, 100))


@pytest.fixture(scope="module")
def server(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of `known`, with familiarity and a policy, and `plain`, without."""
    models = tmp_path_factory.mktemp("familiar")
    policy = VerdictPolicy(accept=("green",))
    write_bundle(
        models / "known" / "1", tiny_model("familiar"), familiarity=FAMILIARITY, verdict=policy
    )
    write_bundle(models / "plain" / "1", tiny_model("colors"), verdict=policy)
    with live_server(models=models, model="known") as running:
        yield running


def test_familiar_frame_is_judged_by_its_label(server: LiveServer) -> None:
    answer = server.recognize(BRIGHT).json()
    assert answer["familiar"] is True
    assert answer["familiarity"] == pytest.approx(250 / 255, abs=0.01)
    assert (answer["verdict"], answer["verdict_reason"]) == ("pass", "accept")


def test_unfamiliar_frame_never_passes(server: LiveServer) -> None:
    """However sure the model is of its label."""
    answer = server.recognize(DARK).json()
    assert answer["predictions"][0]["label"] == "green"
    assert answer["predictions"][0]["probability"] > 0.99
    assert answer["familiar"] is False
    assert (answer["verdict"], answer["verdict_reason"]) == ("unsure", "unfamiliar")


def test_bundle_without_familiarity_says_nothing(server: LiveServer) -> None:
    answer = server.recognize(DARK, model="plain").json()
    assert not {"familiar", "familiarity"} & set(answer)
    assert answer["verdict"] == "pass"


def test_job_says_the_same(server: LiveServer) -> None:
    sent = requests.post(f"{server.url}/v1/jobs", files={"file": ("x.png", DARK)}, timeout=60)
    [frame] = settled(server, sent.json()["job_id"])["frames"]
    assert frame["result"]["familiar"] is False
    assert frame["result"]["verdict"] == "unsure"


def test_unfamiliar_frames_are_counted(server: LiveServer) -> None:
    server.recognize(DARK)
    text = requests.get(f"{server.url}/metrics", timeout=60).text
    assert 'lineside_unfamiliar_frames_total{model="known"}' in text
    assert 'lineside_unfamiliar_frames_total{model="plain"}' not in text


def load(folder: Path) -> Recognizer:
    bundle = read_bundle(folder)
    pool = InterpreterPool(bundle.model_path, 1)
    model = make_model(bundle, pool, Admission(1, 1), Limits())
    assert isinstance(model, Recognizer)
    return model


def test_familiarity_of_the_policy_decides(tiny_model: MakeModel, tmp_path: Path) -> None:
    policy = VerdictPolicy(accept=("green",), min_familiarity=0.7)
    folder = write_bundle(
        tmp_path / "x" / "1", tiny_model("familiar"), familiarity=FAMILIARITY, verdict=policy
    )
    model = load(folder)
    frame = encode(plain((0, 150, 0)), "PNG")
    answer = model.recognize(frame, Options())
    assert (answer.verdict_reason, answer.details.familiar) == ("unfamiliar", False)
    model.use_policy(DevicePolicy(VerdictPolicy(accept=("green",))))
    answer = model.recognize(frame, Options())
    assert (answer.verdict, answer.details.familiar) == ("pass", True)


def test_promise_that_the_model_does_not_keep_is_refused(
    tiny_model: MakeModel, tmp_path: Path
) -> None:
    folder = write_bundle(tmp_path / "x" / "1", tiny_model("colors"), familiarity=FAMILIARITY)
    with pytest.raises(BundleError, match="last output is familiarity, one float32; it has none"):
        load(folder)


def test_unfamiliar_golden_frame_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    golden = {"file": "golden/dark.png", "label": COLORS[1], "probability": 1.0}
    folder = write_bundle(
        tmp_path / "x" / "1",
        tiny_model("familiar"),
        COLORS,
        RECIPE,
        (("golden/dark.png", DARK),),
        familiarity=FAMILIARITY,
    )
    change_manifest(folder, golden=[golden])
    with pytest.raises(BundleError, match="unlike the frames that this model learned from"):
        load(folder)
