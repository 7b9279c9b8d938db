"""As many processes as this one may use CPUs, not as the machine has."""

import os
from pathlib import Path

import pytest

from distmeta.data import workers
from distmeta.data.workers import usable_cpus


def test_affinity_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_cgroup_quotas", lambda membership, mount: iter(()))
    assert usable_cpus() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cpus() == 1


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.0, 1), (1.5, 2), (7.0, 7), (100.0, 8)])
def test_a_quota_limits_too(quota: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(workers, "_cgroup_quotas", lambda membership, mount: iter([quota]))
    assert usable_cpus() == expected


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_quotas_are_read_as_linux_writes_them(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    write(tmp_path / "two", "0::/user/job\n")
    write(mount / "user/job/cpu.max", "max 100000\n")
    write(mount / "user/cpu.max", "250000 100000\n")
    write(mount / "cpu.max", "damaged\n")
    assert list(workers._cgroup_quotas(tmp_path / "two", mount)) == [2.5]
    write(tmp_path / "one", "5:memory:/x\n4:cpu,cpuacct:/docker/abc\n")
    write(mount / "cpu,cpuacct/cpu.cfs_quota_us", "150000\n")
    write(mount / "cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert list(workers._cgroup_quotas(tmp_path / "one", mount)) == [1.5]
    write(mount / "cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    assert list(workers._cgroup_quotas(tmp_path / "one", mount)) == []
    assert list(workers._cgroup_quotas(tmp_path / "absent", mount)) == []
