"""Check the borders between the parts of the tree (``make lint`` runs this).

* A folder of ``csrc`` includes itself and folders above it in the list below, nothing else of ours.
* pybind11 appears in ``csrc/bindings`` alone, headers of the operating system in ``base/os_*`` and ``net/socket*``.
* ISA files (``kernels/`` but generic and dispatch) include intrinsics, plain C headers and structs, nothing inline.
* Only ``dllama/engine``, ``dllama/cluster``, ``formats/recode.py`` and ``version.py`` import the compiled module.
* Every path that ``docs/architecture.md`` names exists.

Knows the text of files, not what they compile to. Prints one line per fault; exit code 1 if there is any.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

LAYERS = ("base", "quant", "kernels", "ops", "net", "model", "bindings")  # each may include those before it
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
OS_HEADER = re.compile(
    r"^(sys/|arpa/|net/|netinet/|linux/|mach/|unistd\.h|fcntl\.h|poll\.h|pthread\.h|sched\.h|dlfcn\.h|signal\.h|netdb\.h"
    r"|windows\.h|winsock)"
)
OS_FILES = re.compile(r"^(base/os_|net/socket)")
CPU_QUERY = {"kernels/dispatch.cpp": {"sys/auxv.h", "sys/sysctl.h"}}  # asks which CPU this is, which C++ cannot
ISA_FILE = re.compile(r"^kernels/(avx|neon|dotprod|sse)")
ISA_ALLOWED = re.compile(
    r"^(\w*mmintrin\.h|immintrin\.h|arm_neon\.h|c(stdint|stddef|string|math|float)|(quant|kernels)/\w+\.h)$"
)
NATIVE_USERS = ("dllama/engine/", "dllama/cluster/", "dllama/formats/recode.py", "dllama/version.py")
LINKED = re.compile(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:py|pyi|cpp|h|md|txt|toml))`|\]\(([^)#:]+)\)")


def check_cpp(root: Path) -> Iterator[str]:
    """Faults of the include lines under ``csrc``."""
    for file in sorted((root / "csrc").rglob("*")):
        if file.suffix in (".h", ".cpp"):
            name = file.relative_to(root / "csrc").as_posix()
            for match in INCLUDE.finditer(file.read_text("utf-8")):
                fault = include_fault(name, match[2], is_quoted=match[1] == '"')
                if fault:
                    yield f"csrc/{name}: {fault}"


def include_fault(file: str, included: str, *, is_quoted: bool) -> str | None:
    """Say why ``file`` (relative to csrc) must not include ``included``, or None."""
    layer, target = file.split("/", maxsplit=1)[0], included.split("/", maxsplit=1)[0]
    if layer not in LAYERS:
        return f"'{layer}' is not one of the folders {', '.join(LAYERS)}"
    if ISA_FILE.match(file) and not ISA_ALLOWED.match(included):
        return f"{included} may bring inline code into a file with its own CPU flags"
    if is_quoted:
        return own_fault(layer, target, included)
    if target == "pybind11" and layer != "bindings":
        return f"<{included}> belongs in csrc/bindings"
    is_os = OS_HEADER.match(included) and included not in CPU_QUERY.get(file, ())
    return f"<{included}> belongs in base/os_* or net/socket*" if is_os and not OS_FILES.match(file) else None


def own_fault(layer: str, target: str, included: str) -> str | None:
    """Say why folder ``layer`` must not include a file of folder ``target``, or None."""
    if target not in LAYERS:
        return f'"{included}" must be written from csrc, e.g. "base/errors.h"'
    if LAYERS.index(target) > LAYERS.index(layer):
        return f'"{included}": {layer} may include only {", ".join(LAYERS[: LAYERS.index(layer) + 1])}'
    return None


def check_python(root: Path) -> Iterator[str]:
    """Faults of the imports under ``dllama``."""
    for file in sorted((root / "dllama").rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if name.startswith(NATIVE_USERS):
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"), name)):
            if imports_native(node):
                yield f"{name}:{node.lineno}: dllama._native is for {', '.join(NATIVE_USERS)}"  # type: ignore[attr-defined]


def imports_native(node: ast.AST) -> bool:
    """Whether a statement imports the compiled module."""
    if isinstance(node, ast.Import):
        return any(alias.name == "dllama._native" for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        names_it = any(alias.name == "_native" for alias in node.names)
        return node.module == "dllama._native" or (names_it and (node.level > 0 or node.module == "dllama"))
    return False


def check_architecture(root: Path) -> Iterator[str]:
    """Paths named in docs/architecture.md that do not exist, seen from the root or from docs."""
    page = root / "docs" / "architecture.md"
    if not page.is_file():
        yield "docs/architecture.md: missing"
        return
    bases = [root, root / "docs", root / "csrc", root / "dllama"]
    for match in LINKED.finditer(page.read_text("utf-8")):
        path = match[1] or match[2]
        is_there = any((base / path).exists() for base in bases)
        if not is_there and ("/" in path or not any(any(base.rglob(path)) for base in bases[2:])):
            yield f"docs/architecture.md: names {path}, which does not exist"


def main(root: Path) -> int:
    """Print all faults."""
    faults = [*check_cpp(root), *check_python(root), *check_architecture(root)]
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"layers: {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent))
