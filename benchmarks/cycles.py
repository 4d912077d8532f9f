"""Cycles per block of the Q40 products, by llvm-mca, beside the memory that they must keep up with.

Run from the root after ``make test`` and ``make test-isa``: ``python3 benchmarks/cycles.py [--mca llvm-mca-19]``.
Needs llvm-mca (Debian: ``llvm-19``), binutils, and for ARM ``binutils-aarch64-linux-gnu``. Prints a table in Markdown,
that of ``docs/performance.md``.

Reads the object files that were built: the loop over the blocks of one row group, for one token and for the tile with
the most multiplications per cycle. llvm-mca knows issue ports and latencies of a CPU, no caches and no memory: what it
gives is a bound, not a measurement.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ITERATIONS = 500
BLOCK = 32
SCALE_AND_NIBBLES = 18  # bytes of a block of one row
# Multiplications of one instruction; on x86-64 by the register that it writes.
X86_PRODUCTS = {"vpmaddubsw": {"ymm": 32}, "vpdpbusd": {"ymm": 32, "zmm": 64}}
ARM_PRODUCTS = {"smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8, "sdot": 16, "smmla": 32}
PREFETCHES = ("prefetch", "prfm")


@dataclass(frozen=True)
class Cpu:
    """A CPU that llvm-mca knows (``model``), and a machine it is found in."""

    level: str
    model: str
    machine: str
    ghz: float
    cores: int
    memory: float  # GB/s, channels times rate


@dataclass(frozen=True)
class Level:
    """Where a level's Q40 products are: a build folder, source files there for one token and for more, rows at once."""

    build: str
    one: str
    more: str
    rows: int

    @property
    def tools(self) -> str:
        """The prefix of the names of the tools that read its object files."""
        return "aarch64-linux-gnu-" if self.build == "aarch64" else ""

    def object(self, source: str) -> Path:
        """Give the object file of a source file."""
        file = ROOT / "build" / self.build / "CMakeFiles/dllama_core.dir/csrc/kernels" / f"{source}.o"
        if not file.is_file():
            raise SystemExit(f"{file.relative_to(ROOT)} is missing; run: make test{'-isa' if self.tools else ''}")
        return file


LEVELS = {
    "avx2": Level("cpp", "avx2_matmul.cpp", "avx2_matmul.cpp", 8),
    "avxvnni": Level("cpp", "avx2_matmul.cpp", "avx_vnni.cpp", 8),
    "avx512vnni": Level("cpp", "avx512_vnni.cpp", "avx512_vnni.cpp", 16),
    "neon": Level("aarch64", "neon.cpp", "neon.cpp", 8),
    "dotprod": Level("aarch64", "neon_dotprod.cpp", "neon_dotprod.cpp", 8),
    "i8mm": Level("aarch64", "neon_dotprod.cpp", "neon_i8mm.cpp", 8),
}
CPUS = (
    Cpu("avx2", "znver3", "Ryzen 5 5600, 2 x DDR4-3200", 4.4, 6, 51.2),
    Cpu("avx2", "skylake", "Core i5-8500, 2 x DDR4-2666", 3.9, 6, 42.7),
    Cpu("avxvnni", "alderlake", "Core i5-12400, 2 x DDR5-4800", 4.0, 6, 76.8),
    Cpu("avx512vnni", "znver4", "Ryzen 5 7600, 2 x DDR5-5200", 5.0, 6, 83.2),
    Cpu("avx512vnni", "icelake-server", "Xeon Gold 6338, 8 x DDR4-3200", 2.6, 32, 204.8),
    Cpu("avx512vnni", "sapphirerapids", "Xeon Gold 6430, 8 x DDR5-4400", 2.6, 32, 281.6),
    Cpu("neon", "cortex-a72", "Raspberry Pi 4, 32 bits of LPDDR4-3200", 1.8, 4, 12.8),
    Cpu("dotprod", "cortex-a76", "Raspberry Pi 5, 32 bits of LPDDR4X-4267", 2.4, 4, 17.1),
    Cpu("dotprod", "neoverse-n1", "Graviton2, 8 x DDR4-3200", 2.5, 64, 204.8),
    Cpu("i8mm", "neoverse-v1", "Graviton3, 8 x DDR5-4800", 2.6, 64, 307.2),
    Cpu("i8mm", "neoverse-n2", "Cobalt 100, 12 x DDR5-4800", 3.4, 128, 460.8),
)


def run(*command: str, given: str | None = None) -> str:
    """Give what a command prints; its complaint ends this program."""
    result = subprocess.run(command, input=given, capture_output=True, encoding="utf-8", check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command[:3])}…: {result.stderr.strip().splitlines()[-1]}")
    return result.stdout


# --- loops of an object file --------------------------------------------------------------------


# A tile of tokens; AVX-512's have row groups before them and where the weights are behind them: 0 is memory, 2 a cache.
# Its tile of one token is a part of the function that goes through the groups.
TILE = re.compile(r"\b(tiles?)<(?:(\d+), )?(\d+)(?:, \(dllama::\(anonymous namespace\)::Source\)(\d))?>\(")
TILES = {("tile", None), ("tile", "2"), ("tiles", "0")}


def tiles(file: Path, tools: str) -> dict[int, tuple[str, int]]:
    """Give the symbols of an object file's Q40 tiles, and their row groups, by their tokens."""
    symbols = [line.split()[-1] for line in run(f"{tools}nm", str(file)).splitlines()]
    names = run("c++filt", given="\n".join(symbols)).splitlines()
    found = {}
    for symbol, name in zip(symbols, names, strict=True):
        match = TILE.search(name)
        if not match or (match[1], match[4]) not in TILES or (match[1] == "tiles" and match[3] != "1"):
            continue
        if "ActivationQ80 const*" in name and "Q80>" not in name:
            found[int(match[3])] = symbol, int(match[2] or 1)
    return found


def instructions(file: Path, tools: str, symbol: str) -> list[tuple[int, str]]:
    """Give addresses and instructions of a function, as an assembler reads them, with labels for addresses."""
    text = run(f"{tools}objdump", "-d", "--no-show-raw-insn", f"--disassemble={symbol}", str(file))
    lines = re.findall(r"^ +([0-9a-f]+):\t(.+?)\s*(?:# .*|// .*)?$", text, re.MULTILINE)
    return [(int(address, 16), instruction) for address, instruction in lines]


def loops(code: list[tuple[int, str]]) -> Iterator[tuple[int, int]]:
    """Give first and last index of each loop: where a jump goes back to and where it is."""
    index = {address: at for at, (address, _) in enumerate(code)}
    for at, (_, instruction) in enumerate(code):
        match = re.match(r"(?:j\w+|b\.?\w*|cbn?z|tbn?z)\s.*?\b([0-9a-f]+) <", instruction)
        if match and index.get(int(match[1], 16), at) < at:
            yield index[int(match[1], 16)], at


def products(code: list[tuple[int, str]]) -> int:
    """Count the multiplications in a piece of code."""
    total = 0
    for _, instruction in code:
        name = instruction.removeprefix("{vex} ").split()[0]
        if name in X86_PRODUCTS:
            total += X86_PRODUCTS[name][instruction.rsplit("%", 1)[1][:3]]
        total += ARM_PRODUCTS.get(name, 0)
    return total


def block_loop(code: list[tuple[int, str]], wanted: int) -> tuple[str, float]:
    """Give the loop over blocks as text without prefetches, and how many times ``wanted`` multiplications it makes.

    A loop within it is written out as often as it takes to make one block's.
    """
    # Of several jumps to one place the nearest counts: behind it lies what is done every few blocks.
    nearest_last = sorted(loops(code), key=lambda loop: -loop[1])
    ends = {a: b for a, b in nearest_last if products(code[a : b + 1])}
    first, last = min(ends.items())
    body = code[first : last + 1]
    for a, b in ends.items():
        if first < a and b < last:
            times = (wanted - products(body)) // products(code[a : b + 1]) + 1
            body = code[first:a] + times * code[a : b + 1] + code[b + 1 : last + 1]
    lines = [re.sub(r"\b[0-9a-f]+ <.*", "top", line) for _, line in body if not line.startswith(PREFETCHES)]
    return "top:\n" + "\n".join(lines) + "\n", float(max(1, products(body) // wanted))


def cycles(cpu: Cpu, file: Path, tokens: int, mca: str) -> float:
    """Give the cycles that a CPU takes for one block of a row group and a tile of tokens."""
    level = LEVELS[cpu.level]
    tools = level.tools
    symbol, groups = tiles(file, tools)[tokens]
    code = instructions(file, tools, symbol)
    text, blocks = block_loop(code, level.rows * BLOCK * tokens * groups)
    flags = [f"-mcpu={cpu.model}", f"-iterations={ITERATIONS}", "-instruction-info=0", "-resource-pressure=0"]
    flags += ["-mtriple=aarch64", "-mattr=+dotprod,+i8mm"] if tools else ["-mtriple=x86_64"]
    total = re.search(r"Total Cycles: +(\d+)", run(mca, *flags, given=text))
    assert total is not None
    return int(total[1]) / ITERATIONS / blocks / groups


# --- the table ----------------------------------------------------------------------------------


def row(cpu: Cpu, mca: str) -> str:
    """Give the line of the table for a CPU: one token, and the tile with the most multiplications per cycle."""
    level = LEVELS[cpu.level]
    one = cycles(cpu, level.object(level.one), 1, mca)
    more = level.object(level.more)
    rates = {tokens: tokens / cycles(cpu, more, tokens, mca) for tokens in tiles(more, level.tools) if tokens > 1}
    best = max(rates, key=lambda tokens: rates[tokens])
    bytes_per_cycle = level.rows * SCALE_AND_NIBBLES / one
    cells = (
        cpu.level,
        f"{cpu.machine} ({cpu.model})",
        f"{level.rows} x {BLOCK}",
        f"{one:.1f}",
        f"{bytes_per_cycle:.1f}",
        f"{bytes_per_cycle * cpu.ghz:.0f} at {cpu.ghz} GHz",
        f"{cpu.memory:.0f}",
        f"{cpu.memory / (bytes_per_cycle * cpu.ghz):.1f} of {cpu.cores}",
        f"{best / rates[best]:.1f} for {best}",
        f"{level.rows * BLOCK * rates[best]:.0f}",
    )
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| level | machine (llvm-mca's model) | block | cycles, 1 token | bytes per cycle | GB/s of one core "
    "| memory, GB/s | cores that fill it | cycles, best tile | multiply-adds per cycle |"
)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mca", default="llvm-mca-19", help="the llvm-mca to use (default llvm-mca-19)")
    args = parser.parse_args()
    if shutil.which(args.mca) is None:
        parser.error(f"{args.mca} is not here; on Debian: apt-get install llvm-19")
    print(HEAD, "|---" * (HEAD.count(" | ") + 1) + "|", *(row(cpu, args.mca) for cpu in CPUS), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
