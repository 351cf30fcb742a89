"""cores: what the scheduler and the cgroup grant."""

import os
from pathlib import Path

import pytest

from server.system.resources import available_cores

HERE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", HERE), ("100000 100000", 1), ("50000 100000", 1), ("9900000 100000", HERE)],
)
def test_the_quota_of_cgroup_2(tmp_path: Path, text: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", HERE), ("100000", 1), ("1000", 1)])
def test_the_quota_of_cgroup_1(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("lines", "limited"),
    [
        ("0::/system.slice/lineside.service", "system.slice/lineside.service/cpu.max"),
        ("0::/system.slice/lineside.service", "system.slice/cpu.max"),
        ("0::/../../somewhere/else", "cpu.max"),
        ("4:memory:/x\n3:cpu,cpuacct:/line/one\n0::/", "cpu/line/cpu"),
        ("9:cpuacct:/a:b\n1:cpu:/not/seen/here", "cpu/cpu"),
    ],
)
def test_quotas_of_the_process_and_of_all_above_it(
    tmp_path: Path, lines: str, limited: str
) -> None:
    own = tmp_path / "self"
    own.write_text(lines + "\n")
    root = tmp_path / "cgroup"
    file = root / limited
    file.parent.mkdir(parents=True)
    if file.name == "cpu.max":
        file.write_text("100000 100000\n")
    else:
        file.with_name("cpu.cfs_quota_us").write_text("100000\n")
        file.with_name("cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(root, own) == 1


@pytest.mark.parametrize("text", ["", "max", "0 0", "-1 100000", "many 100000"])
def test_what_is_no_quota_limits_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert available_cores(tmp_path, tmp_path / "nothing") == HERE


def test_without_a_cgroup_all_cores_of_the_scheduler(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == HERE
