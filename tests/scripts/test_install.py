"""scripts/install as root in a copy of this machine's files, with a service that runs."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from server_process import ROOT, free_port

HERE = Path(__file__).parent

# What is installed before the test: the packages of the tests in place of those of the device, so
# that none are fetched, and settings with a free port.
PREPARED = """
set -eu
for folder in {site} $(readlink -f {python}); do  # where the service, a stranger there, looks
  while folder=$(dirname "$folder"); [ "$folder" != / ]; do chmod o+x "$folder"; done
done
mkdir -p /run/systemd/system /opt/lineside/app /etc/lineside
ln -sf {here}/systemctl /usr/local/bin/systemctl
export PYTHON={python} PATH=/usr/local/bin:$PATH
$PYTHON -m venv --without-pip /opt/lineside/venv
echo {site} > $(echo /opt/lineside/venv/lib/python3*/site-packages)/tests.pth
cd {source}
{{ $PYTHON --version; cat requirements.txt scripts/runtime scripts/slim.py \\
  server/requirements-mqtt.txt; }} \\
  > /opt/lineside/venv/installed
cat > /etc/lineside/lineside.toml <<END
port = {port}
models = "/var/lib/lineside/models"
data = "/var/lib/lineside/data"
keys_file = "/etc/lineside/keys.jsonl"
END
scripts/install --with mqtt
"""
# An upgrade that passes its self-test, and is no service.
BROKEN = """
echo broken > server/broken
sed -i 's/ serve / serve --nonsense /' deploy/systemd/lineside.service
if scripts/install; then echo "the broken version was installed"; fi
ls /opt/lineside /opt/lineside/app/server/broken || true
grep ExecStart /etc/systemd/system/lineside.service
lineside health
"""
# From a folder, with paths that begin there.
RELATIVE = """(
mkdir -p /tmp/elsewhere/server && cd /tmp/elsewhere
cp -R {source}/models/parts/1 bundle
echo secret > key
lineside fleet push bundle 127.0.0.1:1 --key-file key || true
)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that scripts/install is begun from."""
    source = tmp_path_factory.mktemp("install") / "source"
    for name in ("server", "scripts", "models", "deploy"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    return source


def in_fresh_root(source: Path, *steps: str) -> subprocess.CompletedProcess[str]:
    if os.getuid():
        pytest.skip("needs root")
    values = {
        "here": HERE,
        "source": source,
        "python": sys.executable,
        "site": sysconfig.get_path("purelib"),
        "port": free_port(),
    }
    script = "".join(step.format(**values) for step in steps)
    command = [str(HERE / "fresh_root"), "bash", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode == 77:
        pytest.skip(f"no file system over this one: {done.stderr}")
    return done


@pytest.fixture(scope="module")
def done(source: Path) -> subprocess.CompletedProcess[str]:
    """The output of a device on which all of this happened."""
    return in_fresh_root(source, PREPARED, RELATIVE, BROKEN)


def test_version_that_does_not_start_is_rolled_back(
    done: subprocess.CompletedProcess[str],
) -> None:
    """A version that does not start gives way to the one before it."""
    assert done.returncode == 0, done.stderr
    assert re.search(r"lineside: the page is at http://127.0.0.1:\d+/: open it", done.stderr)
    assert "lineside: the service did not start" in done.stderr
    assert "lineside: the previous version serves again" in done.stderr
    assert done.stdout.splitlines()[-4:-1] == [
        "lock",
        "venv",
        "ExecStart=/opt/lineside/venv/bin/python -m server serve"
        " --config /etc/lineside/lineside.toml",
    ]


def test_paths_begin_where_the_command_is_called(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1:1: failed, no answer" in done.stdout
