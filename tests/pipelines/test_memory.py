"""What memory is free: within the limits of the groups that a process is in, of either version."""

from pathlib import Path

import pytest

from pipelines import memory
from pipelines.memory import _left_in_groups, free_memory


def group(folder: Path, limit: object, used: object, version: int, **stat: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text("".join(f"{name} {count}\n" for name, count in stat.items()))


def test_the_group_of_a_batch_job_and_those_around_it(tmp_path: Path) -> None:
    """Its own has no file at the root, where a container's is; files that are only cached are free."""
    (tmp_path / "own").write_text("0::/system.slice/job 7/step_0\n")
    group(tmp_path / "system.slice" / "job 7" / "step_0", "max", 500, 2)
    group(tmp_path / "system.slice" / "job 7", 16_000, 9_000, 2, anon=2_000, active_file=3_000, inactive_file=4_000)
    group(tmp_path / "system.slice", 64_000, 30_000, 2)
    assert list(_left_in_groups(tmp_path, str(tmp_path / "own"))) == [14_000, 34_000]


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("9:name=systemd:/x\n5:cpu,cpuacct:/x\n4:hugetlb,memory:/docker/abc\n0::/\n")
    group(tmp_path / "memory" / "docker" / "abc", 8_000, 6_000, 1, cache=9, total_active_file=10, total_inactive_file=1)
    group(tmp_path / "memory", 2**63 - 4096, 7_000, 1)
    found = list(_left_in_groups(tmp_path, str(tmp_path / "own")))
    assert found[0] == 2_011
    assert min(found) == 2_011


def test_without_groups_there_is_what_the_system_calls_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(_left_in_groups(tmp_path, str(tmp_path / "nothing"))) == []
    assert 0 < free_memory() < 2**50
    monkeypatch.setattr(memory, "_left_in_groups", lambda: [-5, 7])
    assert free_memory() == 0
