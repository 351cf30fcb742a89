"""The images, manifests and the unit: parsed, validated, and held against the server they start."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from server_process import ROOT

from server.cli.main import main
from server.config.load import CONFIG, describe_settings
from server.config.settings import Settings

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "lineside.service"
DOCKERFILES = ("Dockerfile", "Dockerfile.arm64")
KUBERNETES = ("statefulset.yaml", "service.yaml", "pods.yaml", "disruption.yaml")
SETTINGS = {row.env for row in describe_settings()} | {CONFIG}
# Names in deploy/ that are for Docker Compose alone.
OF_COMPOSE = {"LINESIDE_TAG", "LINESIDE_DOCKERFILE"}
PREFIX = "/opt/lineside/venv/bin/python"


def program(name: str) -> str:
    """The path of `name`, from the environment of the tests or the system; skips without it."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} here")
    return found


def parsed(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text("utf-8"))
    assert isinstance(document, dict)
    return document


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / name).read_text("utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.strip().partition(" ") for line in lines)]


def test_the_images_differ_in_their_base_alone() -> None:
    texts = [(ROOT / name).read_text("utf-8").splitlines() for name in DOCKERFILES]
    differing = [pair for pair in zip(*texts, strict=True) if pair[0] != pair[1]]
    comment, base = differing
    assert comment[0].startswith("#")
    assert [line.split("/")[0] for line in base] == ["ARG BASE=amd64", "ARG BASE=arm64v8"]
    assert base[0].split("/")[1] == base[1].split("/")[1]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    done = subprocess.run(
        [program("hadolint"), str(ROOT / name)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_image_is_built_shared_and_runs_unprivileged() -> None:
    """The image is made by the shared command and runs as an unprivileged user."""
    steps = instructions("Dockerfile")
    assert ("RUN", '["scripts/runtime", "/opt/lineside/site"]') in steps
    # arm64-check and install call the same.
    for script in ("arm64-check", "install"):
        assert "scripts/runtime " in (ROOT / "scripts" / script).read_text("utf-8")
    last = dict(steps)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert '"server", "health"' in last["HEALTHCHECK"]
    assert last["VOLUME"] == '["/var/lib/lineside"]'
    base = next(rest for word, rest in steps if word == "ARG")
    assert re.search(r":3\.1[1-3]\.\d+-slim-(bookworm|trixie)$", base)


def test_the_builder_is_sent_what_the_image_copies() -> None:
    sent = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    }
    for word, rest in instructions("Dockerfile"):
        if word != "COPY" or "--from=" in rest:
            continue
        for source in [part for part in rest.split() if not part.startswith("--")][:-1]:
            assert source in sent, f".dockerignore keeps {source} from the builder"
            assert (ROOT / source).exists()


def test_every_setting_that_is_set_exists() -> None:
    # The worker's, which the server knows where jobs are built in.
    known = SETTINGS | OF_COMPOSE | {"LINESIDE_BROKER_URL"}
    files = [ROOT / name for name in DOCKERFILES]
    files += [path for path in DEPLOY.rglob("*.y*ml") if path.is_file()]
    for path in files:
        named = set(re.findall(r"\bLINESIDE_[A-Z_]+\b", path.read_text("utf-8")))
        assert named <= known, path


def test_compose_has_every_service_and_locks_each() -> None:
    compose = parsed(DEPLOY / "compose.yaml")
    services = compose["services"]
    assert set(services) == {"server", "worker", "redis", "prometheus", "grafana"}
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert set(service["networks"]) <= set(compose["networks"]), name
        assert set(service.get("secrets", ())) <= set(compose["secrets"]), name
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source.startswith("./") or source in compose["volumes"], name
        assert re.search(r":(v?\d+\.\d+\.\d+|\$\{LINESIDE_TAG)", service["image"]), name
    build = services["server"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert build["dockerfile"] == "${LINESIDE_DOCKERFILE:-Dockerfile}"
    assert "--appendonly yes" in " ".join(services["redis"]["command"])


def test_compose_waits_longer_than_the_server_takes_to_stop() -> None:
    server = parsed(DEPLOY / "compose.yaml")["services"]["server"]
    assert int(server["stop_grace_period"].removesuffix("s")) > Settings().stop_timeout


@pytest.mark.parametrize("name", KUBERNETES)
def test_the_manifests_are_of_kubernetes_own_schema(name: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    document = parsed(DEPLOY / "kubernetes" / name)
    validator.validate(document, validator.latest_version(), strict=True)


def test_a_rollout_takes_one_pod_at_a_time() -> None:
    spec = parsed(DEPLOY / "kubernetes" / "statefulset.yaml")["spec"]
    assert spec["updateStrategy"] == {"type": "RollingUpdate"}
    pod = spec["template"]["spec"]
    server = pod["containers"][0]
    assert server["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert server["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert "startupProbe" in server
    pause = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pause + Settings().stop_timeout
    for container in (*pod["containers"], *pod["initContainers"]):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["limits"]["memory"]
    budget = parsed(DEPLOY / "kubernetes" / "disruption.yaml")["spec"]
    assert 1 <= budget["minAvailable"] < spec["replicas"]
    services = [parsed(DEPLOY / "kubernetes" / f"{name}.yaml") for name in ("service", "pods")]
    for selector in (budget["selector"]["matchLabels"], *(s["spec"]["selector"] for s in services)):
        assert selector.items() <= spec["template"]["metadata"]["labels"].items()


def test_pod_data_outlives_the_pod_and_has_its_name() -> None:
    """A pod's data outlives the pod and is reached by the pod's name."""
    spec = parsed(DEPLOY / "kubernetes" / "statefulset.yaml")["spec"]
    pods = parsed(DEPLOY / "kubernetes" / "pods.yaml")
    assert spec["serviceName"] == pods["metadata"]["name"]
    assert pods["spec"]["clusterIP"] == "None"
    mounts = spec["template"]["spec"]["containers"][0]["volumeMounts"]
    kept = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    assert {m["name"]: m["mountPath"] for m in mounts if m["name"] in kept} == {
        "models": "/var/lib/lineside/models",
        "data": "/var/lib/lineside/data",
    }


def test_kustomize_names_every_manifest() -> None:
    assert parsed(DEPLOY / "kubernetes" / "kustomization.yaml")["resources"] == list(KUBERNETES)


def test_systemd_verifies_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    # Verify asks whether the program is there.
    unit.write_text(UNIT.read_text("utf-8").replace(PREFIX, sys.executable), "utf-8")
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert UNIT.name not in done.stderr


def test_the_unit_is_exposed_as_little_as_promised() -> None:
    done = subprocess.run(
        [program("systemd-analyze"), "security", "--offline=true", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= 2.0


def test_unit_starts_the_server_with_known_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The unit starts the server with words that it knows."""
    text = UNIT.read_text("utf-8")
    found = re.search(rf"^ExecStart={PREFIX} -m server (.*)$", text, re.MULTILINE)
    assert found is not None
    settings = tmp_path / "lineside.toml"
    settings.write_text("nonsense = 1\n", "utf-8")
    words = found[1].replace("/etc/lineside/lineside.toml", str(settings)).split()
    assert main(words) == 1
    assert "nonsense: there is no such setting" in capsys.readouterr().err
    stop = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > Settings().stop_timeout
