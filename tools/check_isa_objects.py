"""Check that object files of instruction-set levels hold no code the linker could share.

An inline function or a template that several files compile is a weak symbol: the linker keeps one copy, perhaps the one
compiled with AVX2, and a CPU without it then dies in code that never asked for it. So these files may define only
internal functions and their one install function.

    python3 tools/check_isa_objects.py build/**/avx2_*.o

Prints the offending symbols and exits with 1 if there are any.
"""

from __future__ import annotations

import subprocess
import sys

WEAK_TYPES = "WwVvu"  # weak functions and objects, defined or not, and unique globals


def weak_symbols(path: str) -> list[str]:
    """Names of the weak symbols in one object file, demangled."""
    lines = subprocess.run(["nm", "--demangle", path], check=True, capture_output=True, text=True).stdout.splitlines()
    fields = [line[17:].split(maxsplit=1) for line in lines]  # after the address column, which may be blank
    return [name for kind, name in fields if kind in WEAK_TYPES]


def main() -> int:
    """Check the files named on the command line."""
    paths = sys.argv[1:]
    if not paths:
        print("usage: check_isa_objects.py FILE.o...", file=sys.stderr)
        return 2
    found = [f"{path}: {name}" for path in paths for name in weak_symbols(path)]
    for line in found:
        print(f"weak symbol in {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
