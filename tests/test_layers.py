"""The checker of borders: it must hold for this tree, and see each kind of fault."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("check_layers", ROOT / "tools" / "check_layers.py")
assert SPEC is not None
assert SPEC.loader is not None
check_layers = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_layers)


def test_this_tree_has_no_faults() -> None:
    assert check_layers.main(ROOT) == 0


@pytest.mark.parametrize(
    ("file", "included", "is_quoted"),
    [
        ("model/layer.cpp", "ops/matmul.h", True),
        ("base/os_cpu.cpp", "unistd.h", False),
        ("net/socket.cpp", "sys/socket.h", False),
        ("bindings/module.cpp", "pybind11/numpy.h", False),
        ("kernels/dispatch.cpp", "sys/auxv.h", False),
        ("kernels/avx2_matmul.cpp", "immintrin.h", False),
        ("kernels/avx2_matmul.cpp", "quant/blocks.h", True),
        ("ops/matmul.cpp", "vector", False),
    ],
)
def test_allowed_includes(file: str, included: str, is_quoted: bool) -> None:
    assert check_layers.include_fault(file, included, is_quoted=is_quoted) is None


@pytest.mark.parametrize(
    ("file", "included", "is_quoted", "word"),
    [
        ("ops/matmul.cpp", "model/layer.h", True, "ops may include only"),
        ("base/errors.h", "quant/blocks.h", True, "base may include only base"),
        ("ops/matmul.cpp", "matmul.h", True, "written from csrc"),
        ("model/node.cpp", "pybind11/pybind11.h", False, "csrc/bindings"),
        ("model/node.cpp", "sys/mman.h", False, "os_"),
        ("kernels/generic.cpp", "sys/auxv.h", False, "os_"),
        ("kernels/avx2_matmul.cpp", "vector", False, "inline code"),
        ("kernels/neon.cpp", "base/errors.h", True, "inline code"),
        ("extras/thing.cpp", "vector", False, "not one of the folders"),
    ],
)
def test_forbidden_includes(file: str, included: str, is_quoted: bool, word: str) -> None:
    assert word in check_layers.include_fault(file, included, is_quoted=is_quoted)


@pytest.mark.parametrize(
    "line",
    ["import dllama._native", "from dllama import _native", "from dllama._native import Node", "from . import _native"],
)
def test_imports_of_the_core_are_seen(line: str) -> None:
    assert any(check_layers.imports_native(node) for node in ast.walk(ast.parse(line)))


@pytest.mark.parametrize(
    "line", ["import dllama", "from dllama.engine import Engine", "import _native", "from .x import y"]
)
def test_other_imports_are_not(line: str) -> None:
    assert not any(check_layers.imports_native(node) for node in ast.walk(ast.parse(line)))


def test_faults_of_a_tree_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "csrc/base/a.h": '#include "net/b.h"\n',
        "csrc/net/b.h": "#include <vector>\n",
        "dllama/cli/c.py": "def f():\n    from dllama import _native\n",
        "dllama/engine/d.py": "from dllama import _native\n",
        "docs/architecture.md": "See `csrc/base/` and `csrc/gone.cpp` and [c](../dllama/cli/c.py).\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    assert check_layers.main(tmp_path) == 1
    faults = capsys.readouterr().err.splitlines()
    assert len(faults) == 3
    assert faults[0].startswith("csrc/base/a.h: ")
    assert faults[1].startswith("dllama/cli/c.py:2: ")
    assert "csrc/gone.cpp" in faults[2]
