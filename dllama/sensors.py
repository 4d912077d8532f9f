"""How hot this machine is, what slows it down, and what it is connected by; all from files below ``root``.

What Linux does not tell is None or empty: virtual machines and containers know little of this.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dllama.machine import ROOT, read_fields, read_text

_CPU_SENSORS = ("x86_pkg_temp", "cpu", "soc", "coretemp", "k10temp", "zenpower", "package", "tctl")
_SANE = (0.0, 150.0)  # degrees; broken sensors say -273 or 255
# Bits of a Raspberry Pi's firmware: what happens now; the same shifted by 16 has happened since it was started.
_PI_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}


@dataclass(frozen=True, slots=True)
class Throttling:
    """What slows the CPU down: now, and since the start."""

    now: tuple[str, ...]
    before: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interface:
    """The network interface of the default route."""

    name: str
    is_wireless: bool
    megabits: int | None  # per second


def temperature(root: Path = ROOT) -> float | None:
    """Degrees Celsius of the hottest sensor of the CPU, or of all if none says that it is the CPU's."""
    found = [(name, degrees) for name, degrees in _temperatures(root) if _SANE[0] < degrees < _SANE[1]]
    of_cpu = [degrees for name, degrees in found if any(word in name.lower() for word in _CPU_SENSORS)]
    return max(of_cpu or [degrees for _name, degrees in found], default=None)


def _temperatures(root: Path) -> Iterator[tuple[str, float]]:
    for zone in _sorted(root / "sys/class/thermal", "thermal_zone*"):
        yield from _millidegrees(read_text(zone / "type"), zone / "temp")
    for chip in _sorted(root / "sys/class/hwmon", "hwmon*"):
        for file in _sorted(chip, "temp*_input"):
            yield from _millidegrees(read_text(chip / "name"), file)


def _millidegrees(name: str, file: Path) -> Iterator[tuple[str, float]]:
    text = read_text(file).strip()
    if text.removeprefix("-").isdecimal():
        yield name.strip(), int(text) / 1000


def throttling(root: Path = ROOT) -> Throttling | None:
    """Ask a Raspberry Pi's firmware, or an x86 CPU's counters, whether it has been slowed down."""
    bits = _pi_bits(root)
    if bits is not None:
        now, before = (tuple(word for bit, word in _PI_BITS.items() if bits >> (bit + shift) & 1) for shift in (0, 16))
        return Throttling(now, before)
    counts = [
        int(text)
        for file in _sorted(root / "sys/devices/system/cpu", "cpu[0-9]*/thermal_throttle/*_throttle_count")
        if (text := read_text(file).strip()).isdecimal()
    ]
    return Throttling((), (f"throttled {max(counts)} times",) if any(counts) else ()) if counts else None


def _pi_bits(root: Path) -> int | None:
    text = read_text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    if not text and root == ROOT and shutil.which("vcgencmd"):
        command = ["vcgencmd", "get_throttled"]
        try:
            result = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=1, check=False)
        except (OSError, subprocess.SubprocessError):
            return None
        text = result.stdout.decode("ascii", "replace")
    try:
        return int(text.strip().removeprefix("throttled="), 16)
    except ValueError:
        return None


def governor(root: Path = ROOT) -> tuple[str, str]:
    """Name the policy that sets the clock of the first CPU, and its driver; empty if the system does not say."""
    folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
    return read_text(folder / "scaling_governor").strip(), read_text(folder / "scaling_driver").strip()


def default_interface(root: Path = ROOT) -> Interface | None:
    """Find the interface of the default route, if it is a piece of hardware."""
    routes = []
    for line in read_text(root / "proc/net/route").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == "00000000" and fields[6].isdecimal():
            routes.append((int(fields[6]), fields[0]))
    if not routes or "/" in min(routes)[1]:
        return None
    folder = root / "sys/class/net" / min(routes)[1]
    if not (folder / "device").exists():
        return None
    speed = read_text(folder / "speed").strip()
    is_wireless = (folder / "wireless").exists() or (folder / "phy80211").exists()
    return Interface(folder.name, is_wireless, int(speed) if speed.isdecimal() and int(speed) > 0 else None)


def swap(root: Path = ROOT) -> tuple[int, int, bool] | None:
    """Bytes of swap in all and in use, and whether any of it is compressed memory (zram)."""
    fields = read_fields(root / "proc/meminfo", ":")
    sizes = [fields.get(name, "").removesuffix(" kB") for name in ("SwapTotal", "SwapFree")]
    if not all(size.isdecimal() for size in sizes):
        return None
    total, left = (int(size) * 1024 for size in sizes)
    return total, total - left, "/zram" in read_text(root / "proc/swaps")


def _sorted(folder: Path, pattern: str) -> list[Path]:
    """List what matches; a folder that cannot be read holds nothing."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []
