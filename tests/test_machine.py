import os
from pathlib import Path

import pytest

from dllama import machine

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def topology(*cores: tuple[int, int]) -> dict[str, str]:
    """Files of one logical CPU per (package, core)."""
    files: dict[str, str] = {}
    for cpu, (package, core) in enumerate(cores):
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files |= {f"{folder}/physical_package_id": f"{package}\n", f"{folder}/core_id": f"{core}\n"}
    return files


TWO_SOCKETS = topology((0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (0, 1), (1, 0), (1, 1))  # CPU 4-7: second threads


def test_threads_of_one_core_count_once(tmp_path):
    write(tmp_path, TWO_SOCKETS)
    assert machine.physical_cores(tmp_path, range(8)) == 4


def test_only_allowed_cpus_count(tmp_path):
    write(tmp_path, TWO_SOCKETS)
    assert machine.physical_cores(tmp_path, [0, 4]) == 1
    assert machine.physical_cores(tmp_path, [0, 2, 6]) == 2


@pytest.mark.parametrize("files", [{}, topology((0, -1), (0, -1), (0, -1))])
def test_unknown_topology_counts_each_cpu(tmp_path, files):
    write(tmp_path, files)
    assert machine.physical_cores(tmp_path, range(3)) == 3


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [("150000 100000", 2), ("100000 100000", 1), ("20000 100000", 1), ("max 100000", 4), ("900000 100000", 4), ("", 4)],
)
def test_cgroup_v2_quota_is_rounded_up(tmp_path, cpu_max, cores):
    write(tmp_path, {**TWO_SOCKETS, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": cpu_max})
    assert machine.physical_cores(tmp_path, range(8)) == cores


def test_quota_of_an_enclosing_group_holds(tmp_path):
    files = {"sys/fs/cgroup/a/cpu.max": "200000 100000", "sys/fs/cgroup/a/b/cpu.max": "300000 100000"}
    write(tmp_path, {**TWO_SOCKETS, "proc/self/cgroup": "0::/a/b\n", **files})
    assert machine.physical_cores(tmp_path, range(8)) == 2


@pytest.mark.parametrize(("quota", "cores"), [("250000", 3), ("-1", 4)])
def test_cgroup_v1_quota(tmp_path, quota, cores):
    files = {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota, "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}
    write(tmp_path, {**TWO_SOCKETS, "proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n0::/docker/abc\n", **files})
    assert machine.physical_cores(tmp_path, range(8)) == cores


def test_no_cpu_is_still_one_core(tmp_path):
    assert machine.physical_cores(tmp_path, []) == 1


def test_mem_available(tmp_path):
    write(tmp_path, {"proc/meminfo": "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\n"})
    assert machine.available_memory(tmp_path) == 4 * GIB


def test_cgroup_v2_memory_limit_minus_use_without_file_cache(tmp_path):
    group = "sys/fs/cgroup/box"
    stat = f"anon 5\ninactive_file {GIB // 4}\nactive_file {GIB // 4}\n"
    files = {f"{group}/memory.max": str(2 * GIB), f"{group}/memory.current": str(GIB), f"{group}/memory.stat": stat}
    write(tmp_path, {"proc/meminfo": "MemAvailable: 4194304 kB\n", "proc/self/cgroup": "0::/box\n", **files})
    assert machine.available_memory(tmp_path) == 2 * GIB - GIB // 2


def test_cgroup_v2_without_limit(tmp_path):
    files = {"sys/fs/cgroup/box/memory.max": "max\n", "sys/fs/cgroup/box/memory.current": str(GIB)}
    write(tmp_path, {"proc/meminfo": "MemAvailable: 1024 kB\n", "proc/self/cgroup": "0::/box\n", **files})
    assert machine.available_memory(tmp_path) == 1 << 20


def test_cgroup_v1_memory(tmp_path):
    group = "sys/fs/cgroup/memory"
    files = {
        f"{group}/memory.limit_in_bytes": f"{GIB}\n",
        f"{group}/memory.usage_in_bytes": f"{GIB // 2}\n",
        f"{group}/memory.stat": "inactive_file 7\ntotal_inactive_file 1000\ntotal_active_file 24\n",
    }
    write(tmp_path, {"proc/meminfo": "MemAvailable: 4194304 kB\n", "proc/self/cgroup": "4:memory:/x/y\n", **files})
    assert machine.available_memory(tmp_path) == GIB // 2 + 1024


def test_memory_over_the_limit_is_none(tmp_path):
    files = {"sys/fs/cgroup/memory.max": "10", "sys/fs/cgroup/memory.current": "20"}
    write(tmp_path, {"proc/meminfo": "MemAvailable: 1024 kB\n", "proc/self/cgroup": "0::/\n", **files})
    assert machine.available_memory(tmp_path) == 0


def test_without_linux_files_psutil_answers(tmp_path):
    assert machine.available_memory(tmp_path) > 0


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD Ryzen 7 5800X\n"}, "AMD Ryzen 7 5800X"),
        ({"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"}, "Raspberry Pi 5 Model B Rev 1.0"),
        ({"proc/cpuinfo": "processor : 0\n\nModel : Raspberry Pi 4\n"}, "Raspberry Pi 4"),
    ],
)
def test_cpu_name(tmp_path, files, name):
    write(tmp_path, files)
    assert machine.cpu_name(tmp_path) == name


def test_this_machine():
    assert 1 <= machine.physical_cores() <= (os.cpu_count() or 1)
    assert machine.available_memory() > 0
    assert machine.cpu_name()
