"""The pipelines are of their services' own schemas, and what they run on the way is there."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from server_process import ROOT, LiveServer, environ_without_coverage

GITLAB, GITHUB = ROOT / ".gitlab-ci.yml", ROOT / ".github" / "workflows" / "ci.yml"
SMOKE, ROLLOUT = ROOT / "deploy" / "smoke", ROOT / "deploy" / "kubernetes" / "rollout"
# Notes what it is asked, and answers as a cluster whose pods get ready or, with FAIL, do not.
KUBECTL = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$1 $2" in
  "kustomize .") sed -n p statefulset.yaml ;;
  "get statefulset") printf %s "$BEFORE" ;;
  "apply --filename") cat >"$CALLS.applied" ;;
  "rollout status") [ -z "$FAIL" ] ;;
esac
"""


def scripts(node: Any) -> list[str]:
    """All shell texts of a pipeline."""
    if isinstance(node, list):
        return [text for each in node for text in scripts(each)]
    if not isinstance(node, dict):
        return []
    found: list[str] = []
    for name, value in node.items():
        if name in ("script", "before_script", "run"):
            found += [value] if isinstance(value, str) else value
        else:
            found += scripts(value)
    return found


@pytest.mark.parametrize(
    ("path", "schema"), [(GITLAB, "vendor.gitlab-ci"), (GITHUB, "vendor.github-workflows")]
)
def test_pipeline_is_of_the_published_schema(path: Path, schema: str) -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    if not checker.exists():
        pytest.skip("check-jsonschema is not installed")
    done = subprocess.run(
        [str(checker), "--builtin-schema", schema, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", [GITLAB, GITHUB], ids=["gitlab", "github"])
def test_pipeline_tests_builds_rolls_out_and_asks(path: Path) -> None:
    text = path.read_text("utf-8")
    found = scripts(yaml.safe_load(text))
    whole = "\n".join(found)
    parts = (".ci/run", "coverage xml", "deploy/kubernetes/rollout", "deploy/smoke")
    assert all(part in whole for part in parts)
    for name in re.findall(r"Dockerfile[.\w]*", text):
        assert (ROOT / name).is_file()
    for arch in ("amd64", "arm64"):
        assert f'"$IMAGE-{arch}"' in whole
    for name in re.findall(r"(?<![\w/.])(?:\.ci|deploy)/[\w/]+", whole):
        assert os.access(ROOT / name, os.X_OK), name
    for script in found:
        done = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
        assert done.returncode == 0, script


def smoke(url: str) -> subprocess.CompletedProcess[str]:
    env = environ_without_coverage()
    return subprocess.run([SMOKE, url], env=env, capture_output=True, text=True, check=False)


def test_smoke_is_content_with_a_server_that_is_well(server: LiveServer) -> None:
    done = smoke(server.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "smoke: well\n"


def test_smoke_finds_another_model(colors_server: LiveServer) -> None:
    done = smoke(colors_server.url)
    assert done.returncode == 1
    assert "smoke: the frame of good got" in done.stderr


@pytest.mark.parametrize(
    ("before", "fail", "code"),
    [("statefulset/lineside", "", 0), ("statefulset/lineside", "yes", 1), ("", "yes", 1)],
    ids=["ready", "goes back", "first"],
)
def test_rollout_goes_back_if_no_pod_gets_ready(
    tmp_path: Path, before: str, fail: str, code: int
) -> None:
    kubectl, calls = tmp_path / "kubectl", tmp_path / "calls"
    kubectl.write_text(KUBECTL, "utf-8")
    kubectl.chmod(0o755)
    env = environ_without_coverage()
    env |= {"PATH": f"{tmp_path}:{env['PATH']}", "CALLS": str(calls), "BEFORE": before}
    env["FAIL"] = fail
    image = "registry.example.com:5000/line/side:v1"
    done = subprocess.run([ROLLOUT, image], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    pod = yaml.safe_load(Path(f"{calls}.applied").read_text("utf-8"))["spec"]["template"]["spec"]
    assert {each["image"] for each in (*pod["containers"], *pod["initContainers"])} == {image}
    undone = "rollout undo statefulset/lineside" in calls.read_text("utf-8")
    assert undone == bool(fail and before)


@pytest.mark.parametrize("script", [SMOKE, ROLLOUT], ids=["smoke", "rollout"])
def test_script_without_its_argument_says_so(script: Path) -> None:
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage:" in done.stderr
