"""What ``dllama bench`` prints: facts of model and machine under llama-bench's names, and its four forms of output."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dllama.cli.common import to_json

if TYPE_CHECKING:
    from dllama.engine import Engine

Record = dict[str, Any]
_WIDTHS = {"model": 30, "size": 10, "params": 10, "backend": 10, "threads": 7, "test": 15, "t/s": 20}
_RIGHT = {"size", "params", "threads", "test", "t/s"}


def facts_of(engine: Engine, model: str) -> Record:
    """Facts that all tests of one engine share."""
    from dllama import __version__, machine
    from dllama.formats.open_model import open_model
    from dllama.version import build, isa

    with open_model(model, engine.config.weight_type) as file:
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
        "model_type": f"{config.model_type} {scaled(params, 1000)} {config.weight_type.name}",
        "model_size": size,
        "model_n_params": params,
        "type_k": kv_type,
        "type_v": kv_type,
    }


def scaled(value: float, base: int) -> str:
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
    for record in records:
        if not notes:
            yield _row({name: name for name in _WIDTHS})
            yield _row(
                {name: "-" * (width - (name in _RIGHT)) + ":" * (name in _RIGHT) for name, width in _WIDTHS.items()}
            )
            build = f"{record['build_commit']} ({record['build_version']})"
            notes = ["", f"build: {build}; {record['isa']} on {record['cpu_info']}"]
        yield _row(_cells(record))
        if record["n_gen"]:
            notes.append(_roof(record))
    yield from notes


def _row(cells: dict[str, str]) -> str:
    padded = [
        cells[name].rjust(width) if name in _RIGHT else cells[name].ljust(width) for name, width in _WIDTHS.items()
    ]
    return f"| {' | '.join(padded)} |"


def _cells(record: Record) -> dict[str, str]:
    return {
        "model": record["model_type"],
        "size": scaled(record["model_size"], 1024),
        "params": scaled(record["model_n_params"], 1000),
        "backend": record["backends"],
        "threads": str(record["n_threads"]),
        "test": test_name(record),
        "t/s": f"{record['avg_ts']:.2f} ± {record['stddev_ts']:.2f}",
    }


def test_name(record: Record) -> str:
    """llama-bench's name of a test, e.g. ``pp512`` or ``tg128 @ d4096``."""
    name = f"tg{record['n_gen']}" if record["n_gen"] else f"pp{record['n_prompt']}"
    return f"{name} @ d{record['n_depth']}" if record["n_depth"] else name


def _roof(record: Record) -> str:
    per_token, bandwidth = record["weight_bytes_per_token"] / 1e9, record["read_bandwidth"] / 1e9
    return (
        f"{test_name(record)} with {record['n_threads']} threads read weights at {record['read_bandwidth_share']:.0%} "
        f"of this machine's read bandwidth: {per_token:.3f} GB per token, {bandwidth:.2f} GB/s"
    )


def _jsonl(records: Iterable[Record]) -> Iterator[str]:
    for record in records:
        yield to_json(record)


def _json(records: Iterable[Record]) -> Iterator[str]:
    yield to_json(list(records), indent=2)


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
