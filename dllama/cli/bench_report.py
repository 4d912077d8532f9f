"""What ``dllama bench`` prints: facts of model and machine under llama-bench's names, and its four forms of output."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dllama.engine import Engine

Record = dict[str, Any]
_COLUMNS = {"model": 30, "size": 10, "params": 10, "backend": 10, "threads": 7, "test": 15, "t/s": 20}


def facts_of(engine: Engine, model: str) -> Record:
    """Facts that all tests of one engine share."""
    from dllama import __version__, machine
    from dllama.formats.m_file import open_m_file
    from dllama.version import build, isa

    with open_m_file(model) as file:
        params = sum(tensor.rows * tensor.cols for tensor in file.tensors.values())
        size = sum(tensor.rows * tensor.row_bytes for tensor in file.tensors.values())
    config, kv_type = engine.config, engine.kv_type.name.lower()
    return {
        "build_commit": build()["commit"],
        "build_version": __version__,
        "cpu_info": machine.cpu_name(),
        "backends": "CPU",
        "isa": isa(),
        "model_filename": model,
        "model_type": f"{config.model_type} {_scaled(params, 1000)} {config.weight_type.name}",
        "model_size": size,
        "model_n_params": params,
        "type_k": kv_type,
        "type_v": kv_type,
    }


def _scaled(value: float, base: int) -> str:
    """Shorten a count, ``1.24 B``, or with base 1024 a size, ``727.75 MiB``."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"] if base == 1024 else ["", "K", "M", "B", "T"]
    while value >= base and len(units) > 1:
        value, units = value / base, units[1:]
    return f"{value:.2f} {units[0]}".strip()


def lines(form: str, records: Iterable[Record]) -> Iterator[str]:
    """Write records in one of the forms, each line as soon as it can be."""
    return _FORMS[form](records)


def _markdown(records: Iterable[Record]) -> Iterator[str]:
    notes: list[str] = []
    for number, record in enumerate(records):
        if number == 0:
            yield _row(list(_COLUMNS))
            yield _row([f" {'-' * (width - 1)}:" if right else f" {'-' * width}" ...])
        yield _row(_cells(record))
        if not notes:
            notes = ["", f"build: {record['build_commit']} ({record['build_version']}), {record['isa']}, {record['cpu_info']}"]
        if record["n_gen"]:
            notes.append(_roof(record))
    yield from notes


def _jsonl(records: Iterable[Record]) -> Iterator[str]:
    for record in records:
        yield json.dumps(record, ensure_ascii=False)


def _json(records: Iterable[Record]) -> Iterator[str]:
    yield json.dumps(list(records), indent=2, ensure_ascii=False)


def _csv(records: Iterable[Record]) -> Iterator[str]:
    for number, record in enumerate(records):
        flat = {key: value for key, value in record.items() if not key.startswith("samples_")}
        if number == 0:
            yield _csv_line(flat)
        yield _csv_line(flat.values())


def _csv_line(cells: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="", quoting=csv.QUOTE_ALL).writerow(cells)
    return line.getvalue()


_FORMS: dict[str, Callable[[Iterable[Record]], Iterator[str]]] = {
    "md": _markdown,
    "json": _json,
    "jsonl": _jsonl,
    "csv": _csv,
}
