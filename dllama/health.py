"""What this machine does for dllama and what holds it back, one check per fact.

Linux says it all in ``/proc`` and ``/sys``, below ``root``, which tests replace; what is not there is not checked.
Knows no model. Called by ``dllama doctor``.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dllama import __version__, machine, sensors, version
from dllama.hub import folders
from dllama.machine import read_fields, read_text

GIB = 1 << 30
# Bytes of weights that one token reads in Q40: Llama 3.2 1B and Llama 3.1 8B, all but the table of embeddings.
TOKEN_BYTES = {"1B": 695_378_096, "8B": 4_222_435_504}
BANDWIDTH_S, BANDWIDTH_BYTES = 0.5, 512 << 20  # a GiB would take a second to be made
HOT = 80.0  # degrees Celsius, where boards begin to slow down
LITTLE_MEMORY, LITTLE_DISK = GIB, 7 * GIB  # the least for a model of 1B, and the download of one of 8B
# What a CPU must say of itself for each level, best first, as csrc/kernels/dispatch.cpp asks for it.
LEVELS = {
    "avx512vnni": {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"},
    "avxvnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "avx2": {"avx2", "fma", "f16c"},
    "i8mm": {"asimd", "asimddp", "i8mm"},
    "dotprod": {"asimd", "asimddp"},
    "neon": {"asimd"},
}


@dataclass(frozen=True, slots=True)
class Check:
    """One fact about this machine: ``value`` for people, and ``advice`` of one line where it can be bettered."""

    name: str
    state: Literal["ok", "note", "warn"]
    value: str
    advice: str = ""


def checks(root: Path = machine.ROOT) -> Iterator[Check]:
    """Make all checks, each as soon as it is asked for; about a second in all."""
    for check in _CHECKS:
        yield from check(root)


def build(root: Path) -> Iterator[Check]:
    """Say which dllama this is."""
    facts = version.build()
    yield Check("build", "ok", f"dllama {__version__}, commit {facts['commit']}, {facts['compiler']}")
    yield Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def cpu(root: Path) -> Iterator[Check]:
    """Name the CPU and the instruction-set level, and say if a better one could be had."""
    yield Check("cpu", "ok", machine.cpu_name(root))
    level, built = version.isa(), version.supported_isas()
    yield level_check(root, level, built)


def level_check(root: Path, level: str, built: list[str]) -> Check:
    """Compare the level in use with those that this build and this CPU have."""
    info = read_fields(root / "proc/cpuinfo", ":")
    flags = {*(info.get("flags") or info.get("Features") or "").split()}
    able = next((name for name, needed in LEVELS.items() if needed <= flags), level)
    if level != built[0]:
        return Check("level", "warn", level, f"DLLAMA_ISA holds it back; unset it to use {built[0]}")
    if able not in built:
        return Check("level", "warn", level, f"this CPU has {able}, which this build lacks; build anew on this machine")
    if level == "generic" and "hypervisor" in flags:
        return Check("level", "warn", level, "let the virtual machine have the host's CPU model, AVX2 among it")
    if level == "generic":
        return Check("level", "note", level, "this CPU has no instructions that dllama has fast code for")
    return Check("level", "ok", level)


def cores(root: Path) -> Iterator[Check]:
    """Count the cores that may be used, and what is running on them."""
    allowed, every, threads = machine.physical_cores(root), machine.all_cores(root), os.cpu_count() or 1
    value = f"{allowed} of {every} cores to use, {threads} threads in all"
    if allowed < every:
        yield Check("cores", "note", value, "an affinity mask or a container's CPU limit leaves the others out")
    else:
        yield Check("cores", "ok", value)
    load = read_text(root / "proc/loadavg").split()
    if load and load[0].replace(".", "").isdigit() and float(load[0]) > max(1.0, allowed / 2):
        yield Check("load", "warn", f"{load[0]} in the last minute", "end other programs, which share cores and memory")


def memory(root: Path) -> Iterator[Check]:
    """Say what memory is free, and whether some is swapped out."""
    free = machine.available_memory(root)
    value = f"{free / GIB:.1f} GiB free of {machine.total_memory(root) / GIB:.1f}"
    if free < LITTLE_MEMORY:
        yield Check("memory", "warn", value, "end other programs: a 1B model needs about 1 GiB, an 8B model 5 GiB")
    else:
        yield Check("memory", "ok", value)
    swap = sensors.swap(root)
    if swap is None or not swap[0]:
        return
    total, used, is_zram = swap
    value = f"{used / GIB:.1f} GiB used of {total / GIB:.1f}{', zram' if is_zram else ''}"
    if used > total / 2:
        yield Check("swap", "warn", value, "memory is short, and weights that are swapped out make every token slow")
    else:
        yield Check("swap", "ok", value)


def huge_pages(root: Path) -> Iterator[Check]:
    """Say whether the system gives huge pages to those who ask."""
    file = "sys/kernel/mm/transparent_hugepage/enabled"
    modes = read_text(root / file).split()
    mode = next((each.strip("[]") for each in modes if each.startswith("[")), "")
    if mode == "never":
        yield Check("huge pages", "warn", mode, f"run: echo madvise | sudo tee /{file}")
    elif mode and os.environ.get("DLLAMA_HUGE_PAGES") == "0":
        yield Check("huge pages", "note", "not asked for", "unset DLLAMA_HUGE_PAGES to use them")
    elif mode:
        yield Check("huge pages", "ok", mode)


def bandwidth(root: Path) -> Iterator[Check]:
    """Measure how fast memory is read, and say what speed that allows."""
    threads = machine.physical_cores(root)
    try:
        rate = version.read_bandwidth(threads, BANDWIDTH_S, BANDWIDTH_BYTES)
    except MemoryError:
        yield Check("bandwidth", "note", "not measured", "too little memory is free to measure it")
        return
    yield Check("bandwidth", "ok", bandwidth_value(rate, threads))


def bandwidth_value(rate: float, threads: int) -> str:
    """Say what reading ``rate`` bytes per second means: a token reads every weight once."""
    speeds = " and ".join(f"{rate / cost:.1f} tokens/s with {name}" for name, cost in TOKEN_BYTES.items())
    return f"{rate / 1e9:.1f} GB/s with {threads} thread{'s' * (threads > 1)}, at most {speeds} in Q40"


def heat(root: Path) -> Iterator[Check]:
    """Say how hot the CPU is, and whether heat or the power supply slow it down."""
    degrees = sensors.temperature(root)
    if degrees is not None:
        is_hot = degrees >= HOT
        advice = "CPUs slow down when hot: give it a heat sink, a fan, or air" if is_hot else ""
        yield Check("temperature", "warn" if is_hot else "ok", f"{degrees:.0f} °C", advice)
    slowed = sensors.throttling(root)
    if slowed is not None:
        yield _throttling(slowed)


def _throttling(slowed: sensors.Throttling) -> Check:
    if not slowed.now and not slowed.before:
        return Check("throttling", "ok", "none since the start")
    now = ", ".join(slowed.now)
    value = f"now: {now}" if now else f"since the start: {', '.join(slowed.before)}"
    if "under-voltage" in (slowed.now or slowed.before):
        advice = "use a stronger power supply and a short, thick cable"
    else:
        advice = "cool it: slow phases make every speed measured here unsteady"
    return Check("throttling", "warn" if now else "note", value, advice)


def governor(root: Path) -> Iterator[Check]:
    """Say which policy sets the clock."""
    name, driver = sensors.governor(root)
    drives_itself = driver in ("intel_pstate", "amd-pstate-epp")  # there "powersave" is the dynamic one
    if name == "powersave" and not drives_itself:
        advice = "it keeps the lowest clock; run: sudo cpupower frequency-set -g performance"
        yield Check("governor", "warn", name, advice)
    elif name:
        yield Check("governor", "ok", name)


def disk(root: Path) -> Iterator[Check]:
    """Say how much room there is for models."""
    folder = folders.model_dirs()[0]
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    value = f"{free / GIB:.1f} GiB free for {folder}"
    if free < LITTLE_DISK:
        advice = "an 8B model takes 6 GiB; DLLAMA_MODELS can name a folder on another disk"
        yield Check("disk", "note", value, advice)
    else:
        yield Check("disk", "ok", value)


def network(root: Path) -> Iterator[Check]:
    """Say how this machine is connected, for when several compute together."""
    interface = sensors.default_interface(root)
    if interface is None:
        return
    speed = f", {interface.megabits} Mbit/s" if interface.megabits else ""
    if interface.is_wireless:
        yield Check("network", "note", f"{interface.name}, Wi-Fi{speed}", "several machines need a cable between them")
    elif interface.megabits is not None and interface.megabits < 1000:
        yield Check("network", "note", f"{interface.name}, cable{speed}", "several machines need 1000 Mbit/s or more")
    else:
        yield Check("network", "ok", f"{interface.name}, cable{speed}")


_CHECKS: tuple[Callable[[Path], Iterator[Check]], ...] = (
    build,
    cpu,
    cores,
    memory,
    huge_pages,
    bandwidth,
    heat,
    governor,
    disk,
    network,
)
