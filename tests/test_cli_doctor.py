"""``dllama doctor`` and what it knows of a machine, on made-up ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dllama import health, sensors, version
from dllama.cli import main
from dllama.cli.doctor import lines
from dllama.hub.catalogue import CATALOGUE

PI = {
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n\nModel\t\t: Raspberry Pi 4 Model B\n",
    "proc/meminfo": "MemTotal: 1900000 kB\nMemAvailable: 700000 kB\nSwapTotal: 1000000 kB\nSwapFree: 200000 kB\n",
    "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 1000000 800000 100\n",
    "proc/loadavg": "3.50 1.00 0.50 2/300 999\n",
    "proc/net/route": (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
        "wlan0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
    ),
    "sys/class/net/wlan0/device/uevent": "",
    "sys/class/net/wlan0/phy80211/name": "phy0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "84120\n",
    "sys/class/hwmon/hwmon0/name": "nvme\n",
    "sys/class/hwmon/hwmon0/temp1_input": "99000\n",
    "sys/class/hwmon/hwmon1/name": "coretemp\n",
    "sys/class/hwmon/hwmon1/temp1_input": "255000\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "cpufreq-dt\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
}


def make(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "read_bandwidth", lambda *_arguments: 10e9)
    for name in ("DLLAMA_ISA", "DLLAMA_HUGE_PAGES", "DLLAMA_JSON", "DLLAMA_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DLLAMA_CONFIG", "/dev/null")


def found(root: Path) -> dict[str, health.Check]:
    return {check.name: check for check in health.checks(root)}


def test_a_board_in_trouble(tmp_path: Path) -> None:
    checks = found(make(tmp_path, PI))
    assert checks["cpu"].value == "Raspberry Pi 4 Model B"
    assert (checks["load"].state, checks["load"].value) == ("warn", "3.50 in the last minute")
    assert (checks["memory"].state, checks["memory"].value) == ("warn", "0.7 GiB free of 1.8")
    assert (checks["swap"].state, checks["swap"].value) == ("warn", "0.8 GiB used of 1.0, zram")
    assert (checks["huge pages"].state, checks["huge pages"].value) == ("warn", "never")
    assert checks["huge pages"].advice.endswith("sudo tee /sys/kernel/mm/transparent_hugepage/enabled")
    assert (checks["temperature"].state, checks["temperature"].value) == ("warn", "84 °C")
    assert (checks["throttling"].state, checks["throttling"].value) == ("warn", "now: under-voltage, throttled")
    assert "power supply" in checks["throttling"].advice
    assert (checks["governor"].state, checks["governor"].value) == ("warn", "powersave")
    assert (checks["network"].state, checks["network"].value) == ("note", "wlan0, Wi-Fi")
    for check in checks.values():
        assert bool(check.advice) == (check.state != "ok")
        assert all(len(line) <= 80 for line in lines(check) if "/" not in line)


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    checks = found(tmp_path)
    assert {*checks} >= {"build", "python", "cpu", "level", "cores", "memory", "bandwidth", "disk"}
    assert not {"temperature", "throttling", "governor", "network", "swap", "load", "huge pages"} & {*checks}


def test_a_machine_in_order(tmp_path: Path) -> None:
    files = {
        **PI,
        "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 7000000 kB\nSwapTotal: 1000000 kB\nSwapFree: 900000 kB\n",
        "proc/loadavg": "0.10 1.00 0.50 2/300 999\n",
        "proc/net/route": "head\neth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n",
        "sys/class/net/eth0/device/uevent": "",
        "sys/class/net/eth0/speed": "1000\n",
        "sys/class/thermal/thermal_zone0/temp": "51000\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }
    checks = found(make(tmp_path, files))
    names = ("memory", "swap", "huge pages", "temperature", "throttling", "governor", "network")
    assert [checks[name].state for name in names] == ["ok"] * len(names)
    assert "load" not in checks
    assert checks["network"].value == "eth0, cable, 1000 Mbit/s"
    assert checks["throttling"].value == "none since the start"


@pytest.mark.parametrize(
    ("bits", "now", "before"),
    [
        ("0", (), ()),
        ("throttled=0x20000", (), ("clock capped",)),
        ("80008", ("soft temperature limit",), ("soft temperature limit",)),
        ("4", ("throttled",), ()),
    ],
)
def test_firmware_of_a_pi(bits: str, now: tuple[str, ...], before: tuple[str, ...], tmp_path: Path) -> None:
    make(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": bits})
    assert sensors.throttling(tmp_path) == sensors.Throttling(now, before)


def test_throttling_since_the_start_is_a_note(tmp_path: Path) -> None:
    counts = {f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count": str(cpu) for cpu in range(3)}
    check = found(make(tmp_path, counts))["throttling"]
    assert (check.state, check.value) == ("note", "since the start: throttled 2 times")
    make(tmp_path, dict.fromkeys(counts, "0"))
    assert found(tmp_path)["throttling"].state == "ok"


def test_sensors_that_talk_nonsense(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone{}/temp"
    make(tmp_path, {zone.format(0): "-273000", zone.format(1): "x", zone.format(2): "", zone.format(3): "40000"})
    make(tmp_path, {"proc/net/route": "head\n../x 00000000 0 0 0 0 0 00000000\nshort\n", "proc/loadavg": ""})
    make(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": "what"})
    assert sensors.temperature(tmp_path) == 40
    assert sensors.default_interface(tmp_path) is None
    assert sensors.throttling(tmp_path) is None


def test_powersave_is_fine_where_the_cpu_decides(tmp_path: Path) -> None:
    make(tmp_path, {**PI, "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "intel_pstate\n"})
    assert found(tmp_path)["governor"].state == "ok"


def test_slow_cables_and_interfaces_that_are_no_hardware(tmp_path: Path) -> None:
    route = {"proc/net/route": "head\neth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"}
    make(tmp_path, {**route, "sys/class/net/eth0/speed": "100\n"})
    assert sensors.default_interface(tmp_path) is None  # as in a container
    make(tmp_path, {"sys/class/net/eth0/device/uevent": ""})
    check = found(tmp_path)["network"]
    assert (check.state, check.value) == ("note", "eth0, cable, 100 Mbit/s")


@pytest.mark.parametrize(
    ("flags", "level", "built", "state", "words"),
    [
        ("avx2 fma f16c", "avx2", ["avx2", "generic"], "ok", ""),
        ("avx2 fma f16c", "generic", ["avx2", "generic"], "warn", "DLLAMA_ISA holds it back; unset it to use avx2"),
        ("asimd asimddp", "neon", ["neon", "generic"], "warn", "this CPU has dotprod, which this build lacks"),
        ("asimd", "neon", ["neon", "generic"], "ok", ""),
        ("avx2 fma f16c avx_vnni", "avxvnni", ["avxvnni", "avx2", "generic"], "ok", ""),
        ("asimd asimddp i8mm", "dotprod", ["dotprod", "neon", "generic"], "warn", "has i8mm, which this build lacks"),
        ("sse2 hypervisor", "generic", ["generic"], "warn", "let the virtual machine have the host's CPU"),
        ("sse2", "generic", ["generic"], "note", "no instructions"),
        ("", "dotprod", ["dotprod", "neon", "generic"], "ok", ""),
    ],
)
def test_levels(flags: str, level: str, built: list[str], state: str, words: str, tmp_path: Path) -> None:
    make(tmp_path, {"proc/cpuinfo": f"flags : {flags}\n"})
    check = health.level_check(tmp_path, level, built)
    assert (check.state, check.value) == (state, level)
    assert words in check.advice


def test_cores_that_may_not_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topology = {f"sys/devices/system/cpu/cpu{cpu}/topology/core_id": str(cpu // 2) for cpu in range(8)}
    make(tmp_path, {**topology, "sys/devices/system/cpu/cpufreq/x": ""})
    monkeypatch.setattr("dllama.machine._allowed_cpus", lambda: [0, 1, 2])
    check = found(tmp_path)["cores"]
    assert check.state == "note"
    assert check.value.startswith("2 of 4 cores to use")
    monkeypatch.setattr("dllama.machine._allowed_cpus", lambda: range(8))
    assert found(tmp_path)["cores"].state == "ok"


def test_bandwidth_says_what_it_allows() -> None:
    text = health.bandwidth_value(10e9, 1)
    assert text == "10.0 GB/s with 1 thread, at most 14.4 tokens/s with 1B and 2.4 tokens/s with 8B in Q40"


@pytest.mark.parametrize(
    ("size", "name", "hidden"), [("1B", "llama3_2_1b_instruct_q40", 2048), ("8B", "llama3_1_8b_instruct_q40", 4096)]
)
def test_bytes_per_token_are_those_of_the_models(size: str, name: str, hidden: int) -> None:
    embeddings = 4 * 128256 * hidden  # of which a token reads one row
    assert health.TOKEN_BYTES[size] == pytest.approx(CATALOGUE[name].model_bytes - embeddings, rel=1e-5)


def test_too_little_memory_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> float:
        raise MemoryError

    monkeypatch.setattr(version, "read_bandwidth", refused)
    assert found(tmp_path)["bandwidth"].state == "note"


def test_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLLAMA_MODELS", str(tmp_path / "not/there/yet"))
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 1 << 30}))
    check = found(tmp_path)["disk"]
    assert (check.state, check.value) == ("note", f"1.0 GiB free for {tmp_path}/not/there/yet")


def test_huge_pages_that_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLLAMA_HUGE_PAGES", "0")
    make(tmp_path, {"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never\n"})
    assert found(tmp_path)["huge pages"].state == "note"


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for line in out.splitlines():
        assert line[:6].strip() in ("ok", "note", "warn", "")
    assert main(["doctor", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {*checks[0]} == {"name", "state", "value", "advice"}
    assert "level" in [check["name"] for check in checks]


def test_version_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {*facts} >= {"version", "commit", "compiler", "isa", "supported_isas", "python"}
    assert "generic" in facts["supported_isas"]
    assert main(["--version", "--jsn"]) == 2
    assert "--jsn" in capsys.readouterr().err
