"""The parts of a federation that need no Flower: classes, weights, proofs, the wire, arguments."""

import io
import socket
import threading
import zipfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from convert.__main__ import main
from convert.data.dataset import Dataset, LabelledFrame, read_dataset
from convert.errors import ConvertError, GateError
from convert.federation import flower, plans, wire
from convert.federation.plans import Course, Outcome, ServerPlan, SitePlan
from convert.federation.server import proof
from convert.federation.server.agreement import SiteFrames, agree
from convert.federation.simulation import divide, write_folder
from convert.federation.site.process import check_program
from convert.federation.site.take_part import SiteOptions, read_frames
from convert.federation.site.training import SiteTraining, fit_head
from convert.federation.weights import (
    Scale,
    check_update,
    mask,
    moments,
    pack,
    rate_of_round,
    scale_of,
    unpack,
)
from convert.quantization.correction import correct, correct_by, input_means
from convert.quantization.quantize import quantize
from convert.terminal import Terminal

SITE = ["federate", "site", "pictures", "--server", "127.0.0.1:1"]
SERVER = ["federate", "server", "--sites", "2"]


def frames(**counts: int) -> Dataset:
    names = tuple(counts)
    return Dataset(
        names,
        tuple(
            LabelledFrame(Path(f"{name}/{i}.png"), label)
            for label, name in enumerate(names)
            for i in range(counts[name])
        ),
    )


def test_a_folder_is_divided_into_unequal_sites() -> None:
    whole = frames(good=200, crack=40, fray=20)
    parts = divide(whole, 4, 0.5, 0)
    assert parts == divide(whole, 4, 0.5, 0) != divide(whole, 4, 0.5, 1)
    assert Counter(item for part in parts for item in part.frames) == Counter(whole.frames)
    shares = np.array([part.counts() for part in parts]) / np.array([200, 40, 20])
    assert shares.std(axis=0).min() > 0.1
    even = np.array([part.counts() for part in divide(whole, 4, 1e6, 0)])
    assert np.abs(even - np.array([50, 10, 5])).max() <= 1


def test_too_many_sites_for_a_folder() -> None:
    with pytest.raises(ConvertError, match="9 frames can hardly be divided into 2 sites"):
        divide(frames(good=5, bad=4), 2, 0.5, 0)


def test_a_site_gets_links_to_its_frames(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("good", "bad"):
        (source / name).mkdir(parents=True)
        (source / name / "1.png").write_bytes(name.encode())
    write_folder(read_dataset(source), tmp_path / "site")
    site = read_dataset(tmp_path / "site")
    assert [item.path.read_bytes() for item in site.frames] == [b"bad", b"good"]


def test_sites_agree_on_their_classes() -> None:
    found = agree(
        [
            SiteFrames("north", {"good": 8, "crack": 1}, {"good": 2}),
            SiteFrames("south", {"fray": 2, "crack": 4}, {"fray": 1, "crack": 1}),
        ]
    )
    assert found.classes == ("crack", "fray", "good")
    assert found.counts == (5, 2, 8)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (
            [SiteFrames("a", {"x": 5, "y": 5}, {"x": 1, "y": 1})] * 2,
            "two sites are called a: give each its own by --site",
        ),
        ([SiteFrames("a", {"x\ny": 5}, {})], r"the site 'a' sent names .* can't be: \('x\\ny',\)"),
        ([SiteFrames("a", {"x": -5}, {})], "the site 'a' sent names or counts that can't be"),
        ([SiteFrames("a", {"x": 5}, {"x": 1})], "one class together"),
        ([SiteFrames("a", {"x": 5, "y": 1}, {"x": 1, "y": 1})], "class y has 1 frames to train on"),
        ([SiteFrames("a", {"x": 5, "y": 5}, {"x": 1})], "class y has no frame that a site holds"),
        (
            [
                SiteFrames("a", {"good": 5, "bad": 5}, {"good": 1, "bad": 1}),
                SiteFrames("b", {"Good": 5}, {"Good": 1}),
            ],
            r"'Good' \(b\) and 'good' \(a\) look like one class",
        ),
    ],
)
def test_sites_that_do_not_fit_together(sites: list[SiteFrames], message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        agree(sites)


def test_weights_travel_as_one_vector() -> None:
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7, 8], np.float32)]
    vector = pack(arrays)
    assert vector.dtype == np.float32
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    for old, new in zip(arrays, unpack(vector, [(2, 3), (2,)]), strict=True):
        np.testing.assert_array_equal(old, new)
    assert mask(arrays, [1]).tolist() == [False] * 6 + [True] * 2
    with pytest.raises(ConvertError, match=r"\[8\] values came instead of 9"):
        unpack(vector, [(9,)])


def test_what_a_site_sends_is_checked() -> None:
    sent = np.zeros(3, np.float32)
    check_update("north", sent, np.ones(3, np.float32))
    with pytest.raises(ConvertError, match=r"north sent float32 \[2\] instead of float32 \[3\]"):
        check_update("north", sent, np.ones(2, np.float32))
    with pytest.raises(ConvertError, match=r"north sent float64 \[3\]"):
        check_update("north", sent, np.ones(3))
    with pytest.raises(ConvertError, match="north sent weights that are not finite"):
        check_update("north", sent, np.array([0, np.nan, 0], np.float32))


def test_features_are_scaled_by_those_of_all_sites() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3, [1, 20, 0], (40, 3)).astype(np.float32)
    scale = scale_of([(30, moments(features[:30])), (10, moments(features[30:]))])
    assert Scale.from_bytes(scale.to_bytes()).mean.tolist() == scale.mean.tolist()
    scaled = scale.apply(features)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=0.01)
    deviations = features.std(axis=0)
    np.testing.assert_allclose(
        scaled.std(axis=0), deviations / (deviations + np.median(deviations)), atol=0.01
    )
    kernel, bias = rng.normal(0, 1, (3, 2)).astype(np.float32), np.array([1, 2], np.float32)
    own_kernel, own_bias = scale.folded(kernel, bias)
    answers = features @ own_kernel + own_bias
    np.testing.assert_allclose(answers, scaled @ kernel + bias, rtol=1e-2, atol=1e-2)
    with pytest.raises(ConvertError, match="don't belong to one network"):
        scale_of([(1, np.zeros((2, 3))), (1, np.zeros((2, 4)))])


def test_the_rate_falls_to_a_tenth() -> None:
    rates = [rate_of_round(1e-3, number, 5) for number in range(1, 6)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-4)
    assert rate_of_round(1e-3, 1, 1) == pytest.approx(1e-3)


def test_counts_of_all_sites_make_the_report() -> None:
    sites = [
        proof.read_proof(
            "north", 2, {"result": [3, 1, 0, 2], "reference": [4, 0, 0, 2], "same": 5}
        ),
        proof.read_proof(
            "south", 2, {"result": [0, 0, 1, 3], "reference": [0, 0, 0, 4], "same": 3}
        ),
    ]
    found = proof.report(sites, ("bad", "good"), 0.28)
    assert (found.images, found.top1, found.top1_float) == (10, 0.8, 1.0)
    assert found.confusion == ((3, 1), (1, 5))
    assert found.agreement == 0.8
    assert (found.classes["bad"].images, found.classes["bad"].recall) == (4, 0.75)
    assert [site["frames"] for site in proof.details(sites, ("bad", "good"))["sites"]] == [6, 4]
    proof.check_drop(found, "dynamic", 20)
    with pytest.raises(GateError, match=r"right on 20\.00 points fewer of the sites' 10"):
        proof.check_drop(found, "dynamic", 19.9)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"result": [1, 2, 3], "reference": [1, 2, 3], "same": 1},
        {"result": [2, 0, 0, 1], "reference": [1, 0, 0, 2], "same": 1},
        {"result": [2, 0, 0, -1], "reference": [2, 0, 0, -1], "same": 1},
        {"result": [2, 0, 0, 1], "reference": [2, 0, 0, 1], "same": 4},
    ],
)
def test_counts_that_contradict_each_other(values: dict[str, object]) -> None:
    with pytest.raises(ConvertError, match="north sent"):
        proof.read_proof("north", 2, values)


def test_biases_are_corrected_by_means_of_all_sites(colours_tflite: bytes) -> None:
    """Means of two sites, weighted by their frames, correct as all frames in one place do."""
    rng = np.random.default_rng(0)
    pictures = [rng.random((1, 32, 32, 3), np.float32) for _ in range(9)]
    means = [
        (len(part), input_means(colours_tflite, part)) for part in (pictures[:3], pictures[3:])
    ]
    quantised = quantize(colours_tflite, "float16")
    together = correct_by(colours_tflite, quantised, proof.mean_of_means(means))
    assert together == correct(colours_tflite, quantised, pictures)
    with pytest.raises(ConvertError, match="don't belong to one model"):
        proof.mean_of_means([means[0], (1, {})])


def test_a_head_learns_from_features() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=60)
    features = (np.eye(3)[labels] + rng.normal(0, 0.1, (60, 3))).astype(np.float32)
    start = [np.zeros((3, 3), np.float32), np.zeros(3, np.float32)]
    course = Course(head_epochs=60)
    kernel, bias = fit_head(start, features, labels, np.ones(3, np.float32), course, rng)
    assert ((features @ kernel + bias).argmax(axis=1) == labels).mean() > 0.95
    assert kernel.dtype == bias.dtype == np.float32


def picture(path: Path, level: int, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(level, 40, (40, 40, 3)).clip(0, 255)
    cv2.imwrite(str(path), noise.astype(np.uint8))
    return path


def test_a_site_trains_on_its_own_frames(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="tensorflow trains")
    paths = [picture(tmp_path / f"{i}.png", 60 + 120 * (i % 2), i) for i in range(6)]
    named = tuple((path, ("dark", "light")[i % 2]) for i, path in enumerate(paths))
    course = Course(alpha=0.35, size=32, weights="none", head_rounds=0, batch=4, epochs=3)
    plan = SitePlan(name="north", trained=named[:4], held=named[4:])
    training = SiteTraining(plan, course, ("dark", "light", "other"), tmp_path)
    start = pack(training.network().get_weights())
    learned, judged = training.tune(start, np.ones(3, np.float32), 1, 1e-3)
    assert judged.frames == 2
    check_update("north", start, learned)
    assert (learned != start).mean() > 0.5
    scale = scale_of([(4, training.prepare(start))])
    zeros, ones = np.zeros(1281 * 3, np.float32), np.ones(3, np.float32)
    head, _ = training.train_head(zeros, scale, ones, 1)
    assert head.shape == (1281 * 3,)
    with pytest.raises(ConvertError, match="classes lack light"):
        SiteTraining(plan, course, ("dark", "other"), tmp_path)


def test_a_site_may_have_one_class_only(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / "pictures" / "good" / f"{i}.png", 100, i)
    (tmp_path / "pictures" / "empty").mkdir()
    options = SiteOptions(
        folder=tmp_path / "pictures",
        server="127.0.0.1:1",
        security=flower.Security(),
        name="north",
        labelled=None,
        labelled_of=None,
        hold_back=0.2,
        seed=0,
        work=tmp_path,
        out=None,
    )
    trained, held = read_frames(options, Terminal())
    assert (trained.classes, len(trained.frames), len(held.frames)) == (("good",), 5, 1)


def test_the_relay_counts_and_shows_both_ways() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[tuple[str, bytes]] = []
    relay = wire.Relay("127.0.0.1", listener.getsockname()[1], lambda *piece: seen.append(piece))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(100):
                connection.sendall(data * 2)

    server = threading.Thread(target=serve)
    server.start()
    with socket.create_connection(("127.0.0.1", relay.port)) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(100), b""))
    server.join()
    relay.close()
    listener.close()
    assert answer == b"hellohello"
    assert (relay.sent, relay.received) == (5, 10)
    for way, text in (("sent", b"hello"), ("received", b"hellohello")):
        assert b"".join(piece for side, piece in seen if side == way) == text


def test_the_relay_waits_for_its_server() -> None:
    """Who comes before it is turned away, and who comes later is not."""
    port = flower.free_port()
    relay = wire.Relay("127.0.0.1", port)
    with socket.create_connection(("127.0.0.1", relay.port)) as early:
        assert early.recv(1) == b""
    with (
        socket.create_server(("127.0.0.1", port)) as listener,
        socket.create_connection(("127.0.0.1", relay.port)) as late,
    ):
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"hello")
            assert late.recv(5) == b"hello"
    relay.close()


def test_the_account_adds_up_messages(tmp_path: Path) -> None:
    assert wire.read_account(tmp_path) == ()
    for _ in range(2):
        wire.note(tmp_path, wire.Entry("sent", "train", {"arrays": 1000, "metrics": 10}))
    wire.note(tmp_path, wire.Entry("received", "train", {"arrays": 1000}))
    account = wire.read_account(tmp_path)
    assert wire.table(account)[1:] == [
        ("received", "train", "arrays", "1", "1,000"),
        ("sent", "train", "arrays", "2", "2,000"),
        ("sent", "train", "metrics", "2", "20"),
    ]
    assert (wire.total(account, "sent"), wire.total(account, "received")) == (2020, 1000)


def program(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "."), text)
    return out.getvalue()


def test_a_site_runs_no_program_of_the_server() -> None:
    check_program(program(pyproject__toml=flower.APP))
    other = flower.APP.replace("convert.federation.site.app:app", "os:system")
    needs = flower.APP.replace("dependencies = []", 'dependencies = ["other"]')
    for bundle in (
        program(pyproject__toml=flower.APP, convert__py="print('hello')"),
        program(pyproject__toml=other),
        program(pyproject__toml=needs),
        program(pyproject__toml=flower.APP.replace("1.0.0", "1/../../../elsewhere")),
    ):
        with pytest.raises(ConvertError, match="a program of its own, which this site does not"):
            check_program(bundle)
    for bundle in (b"", program(other__toml="")):
        with pytest.raises(ConvertError, match="no readable program"):
            check_program(bundle)


def test_plans_come_back_as_they_were(tmp_path: Path) -> None:
    server = ServerPlan(sites=2, course=Course(rate=1e-3), name="x", out=tmp_path, accept=("good",))
    site = SitePlan(name="north", trained=((tmp_path / "a.png", "good"),), held=())
    outcome = Outcome(error="no", exit_code=3)
    file = tmp_path / "plan.json"
    plans.write(file, server)
    assert plans.read(file, ServerPlan) == server
    plans.write(file, site)
    assert plans.read(file, SitePlan) == site
    plans.write(file, outcome)
    assert plans.read(file, Outcome) == outcome
    with pytest.raises(ConvertError, match=r"other\.json can't be read"):
        plans.read(tmp_path / "other.json", Outcome)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (SITE, "TLS needs --authority; --insecure does without"),
        ([*SITE, "--authority", "nothing.pem"], "nothing.pem is not a file"),
        ([*SITE, "--insecure", "--hold-back", "1"], "--hold-back 1 should be from 0 to below 1"),
        ([*SITE, "--insecure", "--site", ".."], "--site .. should be a name: without a /"),
        ([*SITE, "--insecure", "--site", "/tmp"], "--site /tmp should be a name: without a /"),
        ([*SITE, "--insecure", "--labelled", "x"], "--labelled needs --labelled-of"),
        ([*SITE, "--insecure", "--accept", "good"], "--accept does nothing without --out"),
        (
            ["federate", "site", "x", "--server", "y", "--insecure"],
            "--server y should be HOST:PORT",
        ),
        (["federate", "server", "--sites", "1"], "--sites 1 should be at least 2"),
        (SERVER, "TLS needs --certificate, --key and --authority"),
        ([*SERVER, "--insecure", "--mode", "int8"], "--mode int8 should be one of dynamic"),
        ([*SERVER, "--insecure", "--rounds", "-1"], "--rounds -1 should be from 0 to 1000"),
        ([*SERVER, "--insecure", "--size", "9999"], "--size 9999 should be from 32 to 1024"),
        ([*SERVER, "--insecure", "--rate", "0"], "--rate 0 should be above 0 and at most 10"),
        (
            [*SERVER, "--insecure", "--weights", "none"],
            "--weights none has no features that a head",
        ),
        (
            [*SERVER, "--insecure", "--rounds", "0", "--head-rounds", "0"],
            "--rounds 0 and --head-rounds 0 leave nothing to train",
        ),
        ([*SERVER, "--insecure", "--min-probability", "0.5"], "does nothing without --accept"),
        ([*SERVER, "--insecure", "--validate", "nothing"], "--validate nothing is not there"),
        ([*SERVER, "--insecure", "--name", "a b"], "the name 'a b' is not usable"),
        (
            ["federate", "simulate", "pictures", "--concentration", "0"],
            "--concentration 0 should be a number above 0",
        ),
        (["federate", "simulate", "pictures"], "pictures is neither a folder of classes nor"),
    ],
)
def test_arguments_that_can_not_be(
    command: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 1
    assert message in capsys.readouterr().err


def test_without_flower_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if flower.is_installed():
        pytest.skip("flwr is installed")
    monkeypatch.chdir(tmp_path)
    assert main([*SERVER, "--insecure"]) == 1
    assert "flwr is not installed: pip install -r" in capsys.readouterr().err
