"""Facts about this machine that decide defaults: cores, memory and the CPU's name.

Linux is asked through ``/proc`` and ``/sys`` so that containers and affinity masks count; elsewhere psutil answers,
which is imported only then: ``launch.py`` asks before anything is installed. All paths are below ``root``, which tests
replace. Limits of control groups (v1 and v2) hold for all groups below, so every ancestor is asked.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Collection, Iterator
from pathlib import Path

ROOT = Path("/")
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 256 << 10


def physical_cores(root: Path = ROOT, cpus: Collection[int] | None = None) -> int:
    """Count the physical cores this process may use, at least 1.

    Args:
        root: Where ``proc`` and ``sys`` are.
        cpus: Logical CPUs the process may run on; None: ask the system.

    Returns:
        Distinct cores among ``cpus``, or less if a control group's CPU quota is smaller (rounded up).
    """
    if cpus is None:
        cpus = _allowed_cpus()
    cores = len({_core_of(root, cpu) for cpu in cpus})
    quota = min(_cpu_quotas(root), default=math.inf)
    return max(1, min(cores, math.ceil(quota) if math.isfinite(quota) else cores))


def all_cores(root: Path = ROOT) -> int:
    """Count the physical cores of this machine, whether this process may use them or not, at least 1."""
    names = [path.name for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*")]
    cpus = [int(name[3:]) for name in names if name[3:].isdecimal()] or range(os.cpu_count() or 1)
    return len({_core_of(root, cpu) for cpu in cpus})


def total_memory(root: Path = ROOT) -> int:
    """Bytes of memory of this machine."""
    total = read_fields(root / "proc/meminfo", ":").get("MemTotal", "").removesuffix(" kB")
    if total.isdecimal():
        return int(total) * 1024
    import psutil

    return int(psutil.virtual_memory().total)


def available_memory(root: Path = ROOT) -> int:
    """Bytes that can be allocated without swapping, within this process's control groups."""
    return max(0, min([_system_available(root), *_cgroup_available(root)]))


def give_back_freed_memory() -> None:
    """Return freed memory to the system now, and from now on as soon as large pieces of it are freed.

    glibc keeps tens of MiB for each thread that has loaded weights. For processes that live long and need memory by
    times: once at their start, and whenever they need it no longer.
    """
    import ctypes

    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.malloc_trim(0)


def cpu_name(root: Path = ROOT) -> str:
    """The CPU's or board's name, e.g. ``"AMD Ryzen 7 5800X"`` or ``"Raspberry Pi 5 Model B"``."""
    fields = read_fields(root / "proc/cpuinfo", ":")
    board = read_text(root / "proc/device-tree/model").strip("\0 \n")
    return fields.get("model name") or board or fields.get("Model") or platform.processor() or platform.machine()


def _allowed_cpus() -> Collection[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    import psutil

    return range(psutil.cpu_count(logical=False) or os.cpu_count() or 1)


def _core_of(root: Path, cpu: int) -> tuple[str, str]:
    """What logical CPUs of one core have in common; a CPU of unknown topology is a core of its own."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    package, core = (read_text(topology / name).strip() for name in ("physical_package_id", "core_id"))
    return (package, core) if core not in ("", "-1") else ("cpu", str(cpu))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """CPUs' worth of time that each enclosing control group allows."""
    for group in _cgroups(root, "cpu"):
        if v2 := read_text(group / "cpu.max").split():
            quota, period = v2[0], v2[-1]
        else:
            quota, period = (read_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            yield int(quota) / int(period)


def _system_available(root: Path) -> int:
    available = read_fields(root / "proc/meminfo", ":").get("MemAvailable", "")
    if available.endswith(" kB"):
        return int(available.removesuffix(" kB")) * 1024
    import psutil

    return int(psutil.virtual_memory().available)


def _cgroup_available(root: Path) -> Iterator[int]:
    """Limit minus use of each enclosing control group; file cache counts as free, since it is given up on demand."""
    names = (("memory.max", "memory.current", ""), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))
    for group in _cgroups(root, "memory"):
        for limit_name, used_name, prefix in names:
            limit, used = read_text(group / limit_name).strip(), read_text(group / used_name).strip()
            if limit.isdigit() and used.isdigit():
                stat = read_fields(group / "memory.stat", " ")
                cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                yield int(limit) - max(0, int(used) - cache)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups that govern ``controller``, innermost first, up to the mount point.

    Inside a container the path may be the host's; then only the mount point exists, which is the container's own group.
    """
    base = root / "sys/fs/cgroup"
    for line in read_text(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            mount = base
        elif controller in controllers.split(","):
            mount = base / controller
        else:
            continue
        group = mount / path.strip("/")
        yield group
        if group != mount:
            yield from (parent for parent in group.parents if parent.is_relative_to(mount))


def read_fields(path: Path, separator: str) -> dict[str, str]:
    """Give the first value of each key in a file of ``key<separator>value`` lines."""
    fields: dict[str, str] = {}
    for line in read_text(path).splitlines():
        key, _, value = line.partition(separator)
        fields.setdefault(key.strip(), value.strip())
    return fields


def read_text(path: Path) -> str:
    """Give the text of a small file, empty if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
