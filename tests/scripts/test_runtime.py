"""What the device's install takes out of the packages: the server works without, and is small."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from server_process import ROOT

from server.line.outputs.service import EXTRAS

SLIM = ROOT / "scripts" / "slim.py"
# Installing in fresh roots needs a network, root and minutes.
ROOTS = "LINESIDE_TEST_ROOTS"


def pinned() -> list[str]:
    """Names of the packages in requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate()]


def place(source: Path, target: Path) -> None:
    """Puts the file there without storing it twice, where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The packages of requirements.txt as they are installed here, and nothing else."""
    site = tmp_path_factory.mktemp("runtime")
    for name in pinned():
        for file in importlib.metadata.files(name) or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.is_file():
                place(source, site / file)
    yield site
    shutil.rmtree(site)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("LINESIDE_")} | environment
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=600
    )


def test_small_runtime_serves_without_removed_files(site: Path) -> None:
    """The runtime is small and serves without the files that were taken out."""
    weighed = run(sys.executable, str(SLIM), str(site))
    assert weighed.returncode == 0, weighed.stdout + weighed.stderr
    total = re.search(r"([\d.]+) MB in all; the limit is 330", weighed.stdout)
    assert total is not None
    assert 150 < float(total[1]) <= 330
    assert not (site / "ml_dtypes").exists()
    assert not list(site.glob("tensorflow*"))
    # -S: nothing of the environment of the tests.
    checked = run(sys.executable, "-S", "-m", "server", "check", PYTHONPATH=str(site))
    assert checked.returncode == 0, checked.stderr
    assert "parts/1 (default): dynamic, 6 labels, 6 golden frames right" in checked.stdout
    assert "Created TensorFlow Lite XNNPACK delegate" in checked.stderr
    # Those that need an extra are imported only if a setting or a model asks for them.
    others = ["server.__main__"]
    others += [f"server.recognition.engines.{name}" for name in ("onnx", "openvino")]
    others += ["server.grpc.server", "server.grpc.status", "server.process.grpc_credentials"]
    others += [
        f"server.line.{room}.{extra}" for room in ("outputs", "triggers") for extra in EXTRAS
    ]
    everything = (
        "import importlib, pkgutil, server; [importlib.import_module(m.name)"
        f" for m in pkgutil.walk_packages(server.__path__, 'server.') if m.name not in {others}]"
    )
    imported = run(sys.executable, "-S", "-c", everything, PYTHONPATH=str(site))
    assert imported.returncode == 0, imported.stderr


def test_a_folder_without_a_runtime_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = run(sys.executable, str(SLIM), str(tmp_path))
    assert done.returncode == 2
    assert "is no runtime" in done.stderr
    assert (tmp_path / "bin").is_dir()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("runtime", (), "usage: runtime SITE"),
        ("install", ("--frobnicate",), "usage: scripts/install"),
        ("install", ("--purge",), "usage: scripts/install"),
    ],
)
def test_wrong_use_of_a_script_is_told(
    script: str, arguments: tuple[str, ...], message: str
) -> None:
    done = run(str(ROOT / "scripts" / script), *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_the_scripts_are_clean() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("there is no shellcheck here")
    names = ["scripts/" + name for name in ("runtime", "install", "arm64-check", "setup.sh")]
    names += ["tests/scripts/fresh_root", "tests/scripts/systemctl"]
    done = run("shellcheck", "-x", "-s", "bash", *names)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(not os.environ.get(ROOTS), reason=f"takes minutes; set {ROOTS}=1 to run it")
def test_it_recognises_on_emulated_arm64() -> None:
    if os.getuid() or not shutil.which("debootstrap") or not shutil.which("qemu-aarch64-static"):
        pytest.skip("needs root, debootstrap and qemu-aarch64-static")
    done = run(str(ROOT / "scripts" / "arm64-check"))
    assert done.returncode == 0, done.stderr
    assert "right label, XNNPACK active" in done.stderr


@pytest.mark.skipif(not os.environ.get(ROOTS), reason=f"asks PyPI; set {ROOTS}=1 to run it")
@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_every_requirement_has_a_wheel_for_the_raspberry_pi(python: str, tmp_path: Path) -> None:
    platforms = [
        word
        for version in ("manylinux_2_28", "manylinux_2_27", "manylinux2014", "manylinux_2_17")
        for word in ("--platform", f"{version}_aarch64")
    ]
    options = ["--only-binary=:all:", "--python-version", python, "--dry-run", "--quiet"]
    target = ["--target", str(tmp_path), "-r", "requirements.txt"]
    done = run(sys.executable, "-m", "pip", "install", *platforms, *options, *target)
    assert done.returncode == 0, done.stderr
