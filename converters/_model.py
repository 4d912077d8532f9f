"""What the converters of models have in common: number types, the bar, and the last line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dllama.config import DType
from dllama.errors import UsageError
from dllama.formats.m_copy import copy_to_m_file
from dllama.formats.m_layout import total_nbytes
from dllama.formats.source import ModelSource
from dllama.hub.progress import Progress

TYPES = ("q40", "q80", "f16", "f32")


def number_type(name: str) -> DType:
    """Give the number type of a word of the command line."""
    if name not in TYPES:
        raise UsageError(f"unknown number type '{name:.40}'; expected one of {', '.join(TYPES)}")
    return DType[name.upper()]


def write_model(source: ModelSource, path: str, header: bytes | None) -> None:
    """Write a model, and say so."""
    with _bar(path, total_nbytes(source.config)) as update:
        copy_to_m_file(source, path, header, update)
    if header is None:
        print(f"{path}: only dllama reads this file: distributed-llama knows no such model")
    print(f"✅ {path}")


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, and nothing elsewhere."""
    if not sys.stdout.isatty():
        yield lambda _done: None
        return
    with Progress(title, total, mark="🔶") as bar:
        yield bar.update
