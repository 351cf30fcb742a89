"""The device's packages: what their hashes keep out, and the list of what was installed."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from server_process import ROOT
from supply.hashed import LOCK, LockError, pins, with_hashes

DEVICE_FILES = (ROOT / "requirements.txt", *sorted((ROOT / "server").glob("requirements-*.txt")))
DIST = "tiny_part-1.0.dist-info"
# A Python whose virtual environments take pip from the tests' packages, which is much quicker.
PYTHON = """#!/bin/bash
set -eu
if [ "$1 $2" != "-m venv" ]; then exec {python} "$@"; fi
{python} "$@" --without-pip
echo {site} > "$(echo "${{@: -1}}"/lib/python3*/site-packages)/tests.pth"
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A package of two lines."""
    path = tmp_path / "index" / "tiny_part-1.0-py3-none-any.whl"
    path.parent.mkdir()
    files = {
        "tiny_part.py": "PARTS = 1\n",
        f"{DIST}/METADATA": "Metadata-Version: 2.1\nName: tiny-part\nVersion: 1.0\n",
        f"{DIST}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
            record += f"{name},sha256={digest.rstrip('=')},{len(text)}\n"
        archive.writestr(f"{DIST}/RECORD", f"{record}{DIST}/RECORD,,\n")
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts that install the device's packages, which are one."""
    folder = tmp_path / "checkout"
    (folder / "scripts" / "supply").mkdir(parents=True)
    for name in ("runtime", "supply/hashed.py", "slim.py"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts" / name)
    (folder / "requirements.txt").write_text("# The device's.\nTiny.Part==1.0\n")
    return folder


def lock(checkout: Path, digest: str) -> None:
    text = f"tiny-part==1.0 \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{digest}\n"
    (checkout / "requirements.lock").write_text(text)


def install(checkout: Path, wheel: Path) -> subprocess.CompletedProcess[str]:
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent), "PYTHON": sys.executable}
    return subprocess.run(
        [str(checkout / "scripts" / "runtime"), str(checkout / "site")],
        env=os.environ | index,
        capture_output=True,
        text=True,
    )


def test_every_pin_of_the_device_has_hashes() -> None:
    lines = list(with_hashes(DEVICE_FILES))
    assert len(lines) == sum(len(list(pins(file.read_text("utf-8")))) for file in DEVICE_FILES)
    for line in lines:
        assert "--hash=sha256:" in line


def test_package_that_was_changed_is_not_installed(checkout: Path, wheel: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock(checkout, digest)
    done = install(checkout, wheel)
    # What comes next, slim.py, misses the others.
    assert "it has no ai_edge_litert" in done.stderr
    assert (checkout / "site" / "tiny_part.py").is_file()
    lock(checkout, "1" * 64)
    done = install(checkout, wheel)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (checkout / "site" / "tiny_part.py").exists()


def test_scripts_serve_takes_wheels_with_known_hashes_alone(checkout: Path, wheel: Path) -> None:
    """A source archive would run code of its own while it is installed."""
    shutil.copy(ROOT / "scripts" / "setup.sh", checkout / "scripts")
    for name in ("convert/requirements.txt", "tests/requirements.txt", "server/requirements-x.txt"):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).touch()
    python = checkout / "python"
    python.write_text(PYTHON.format(python=sys.executable, site=sysconfig.get_path("purelib")))
    python.chmod(0o755)
    source = wheel.parent / "tiny_part-1.0.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("tiny_part-1.0/setup.py"))

    def install(digest: str) -> subprocess.CompletedProcess[str]:
        lock(checkout, digest)
        index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent), "PYTHON": str(python)}
        return subprocess.run(
            ["bash", "-euc", ". scripts/setup.sh; environment .venv requirements.txt"],
            cwd=checkout,
            env=os.environ | index,
            capture_output=True,
            text=True,
        )

    done = install("1" * 64)
    assert (done.returncode, "DO NOT MATCH THE HASHES" in done.stderr) == (1, True)
    wheel.unlink()
    done = install(hashlib.sha256(source.read_bytes()).hexdigest())
    assert (done.returncode, "No matching distribution found" in done.stderr) == (1, True)


def test_pin_without_hash_is_not_installed(checkout: Path, wheel: Path) -> None:
    lock(checkout, "1" * 64)
    (checkout / "requirements.txt").write_text("tiny-part==1.1\n")
    done = install(checkout, wheel)
    assert done.returncode != 0
    assert "requirements.lock has no hash of tiny-part==1.1: run scripts/supply/lock" in done.stderr
    (checkout / "requirements.txt").write_text("tiny-part>=1.0\n")
    with pytest.raises(LockError, match="is no pin"):
        list(with_hashes([checkout / "requirements.txt"], LOCK))


def test_sbom_lists_what_is_installed(tmp_path: Path, wheel: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    done = subprocess.run(
        [str(ROOT / "scripts" / "supply" / "sbom"), str(tmp_path / "venv" / "bin" / "python")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    bom = json.loads(done.stdout)
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert bom["metadata"]["component"]["name"] == "lineside"
    assert [(each["name"], each["version"], each["purl"]) for each in bom["components"]] == [
        ("tiny-part", "1.0", "pkg:pypi/tiny-part@1.0")
    ]
