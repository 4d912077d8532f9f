"""Check that object files of instruction-set levels hold no code the linker could share.

An inline function or a template that several files compile is a weak symbol: the linker keeps one copy, perhaps the one
compiled with AVX2, and a CPU without it then dies in code that never asked for it. So these files may define only
internal functions and their one install function. And a file whose level is named after an instruction must have it,
while the level below must not.

    python3 tools/check_isa_objects.py build/**/avx2_*.o

Prints the faults and exits with 1 if there are any.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

# What the code of a file must have and must not have, by the beginning of its name; the first that fits.
INSTRUCTIONS = {
    "avx512_vnni": (r"vpdpbusd .*%zmm", r"\{vex\} vpdpbusd"),
    "avx512": (r"%zmm", r"\{vex\} vpdp"),
    "avx_vnni": (r"\{vex\} vpdpbusd", r"%zmm|%k[0-7]"),
    "avx2": (r"%ymm", r"vpdpbusd|%zmm|%k[0-7]"),
    "neon_i8mm": (r"\bsmmla\b", r"\bptrue\b"),
    "neon_dotprod": (r"\bsdot\b", r"\bsmmla\b"),
    "neon": (r"\bfmla\b", r"\b(sdot|smmla)\b"),
}
WEAK_TYPES = "WwVvu"  # weak functions and objects, defined or not, and unique globals


def weak_symbols(path: str) -> list[str]:
    """Names of the weak symbols in one object file, demangled."""
    lines = subprocess.run(["nm", "--demangle", path], check=True, capture_output=True, text=True).stdout.splitlines()
    fields = [line[17:].split(maxsplit=1) for line in lines]  # after the address column, which may be blank
    return [name for kind, name in fields if kind in WEAK_TYPES]


def instruction_faults(path: str) -> list[str]:
    """Say what instructions of its level an object file lacks, and which it has from a level above."""
    name = Path(path).name
    rule = next((rule for start, rule in INSTRUCTIONS.items() if name.startswith(start)), None)
    if rule is None:
        return ["no rule in INSTRUCTIONS for a file of this name"]
    needed, forbidden = rule
    is_foreign = name.startswith("neon") and platform.machine() == "x86_64"
    command = ["aarch64-linux-gnu-objdump" if is_foreign else "objdump", "-d", "--no-show-raw-insn", path]
    code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    faults = [] if re.search(needed, code) else [f"no instruction like {needed}"]
    if match := re.search(forbidden, code):
        faults.append(f"an instruction of a level above: {match[0]}")
    return faults


def main() -> int:
    """Check the files named on the command line."""
    paths = sys.argv[1:]
    if not paths:
        print("usage: check_isa_objects.py FILE.o...", file=sys.stderr)
        return 2
    found = [f"{path}: weak symbol {name}" for path in paths for name in weak_symbols(path)]
    found += [f"{path}: {fault}" for path in paths for fault in instruction_faults(path)]
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
