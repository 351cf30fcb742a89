"""cores: what the scheduler and the cgroup grant."""

import os
from pathlib import Path

import pytest

from server.recognition.cores import granted_cores

HERE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", HERE), ("100000 100000", 1), ("50000 100000", 1), ("9900000 100000", HERE)],
)
def test_the_quota_of_cgroup_2(tmp_path: Path, text: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert granted_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", HERE), ("100000", 1), ("1000", 1)])
def test_the_quota_of_cgroup_1(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert granted_cores(tmp_path) == cores


def test_without_a_cgroup_all_cores_of_the_scheduler(tmp_path: Path) -> None:
    assert granted_cores(tmp_path) == HERE
