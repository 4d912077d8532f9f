"""Plots of results as SVG: tokens/s against threads, context and sequences, and the roofline.

The same records give the same bytes. Lines and letters are of colours that can be read on white and on black.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

from benchmarks.models import LLAMA_1B
from benchmarks.records import Record

OURS, THEIRS, ROOF, INK = "#2f81f7", "#e0823d", "#8a8a8a", "#7d7d7d"
_STYLE = {
    "svg.hashsalt": "dllama",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
_SIDES = (("dllama", "ours", OURS), ("llama.cpp", "theirs", THEIRS))


def draw(name: str, records: Sequence[Record], folder: Path) -> None:
    """Write the plots of the 1B model as ``{name}-{kind}.svg``; those for which there are no records are left out."""
    mine = [record for record in records if record.get("model") == LLAMA_1B.title]
    races = [record for record in mine if record["benchmark"] == "against_llama_cpp"]
    most = max((record["threads"] for record in races), default=0)
    widest = [record for record in races if record["threads"] == most]
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        _threads(races, folder / f"{name}-threads.svg")
        _context([record for record in widest if record["workload"]["sequences"] == 1], folder / f"{name}-context.svg")
        _batch([record for record in widest if record["workload"]["depth"] == 128], folder / f"{name}-batch.svg")
        _roofline([record for record in mine if "tokens" in record], folder / f"{name}-roofline.svg")


def _threads(races: Sequence[Record], path: Path) -> None:
    figure, panes = plt.subplots(1, 2, figsize=(7, 2.8))
    for pane, case, text in zip(panes, ("pp512", "tg128"), ("prompt of 512", "generation of 128"), strict=True):
        found = [record for record in races if record["case"] == case]
        threads = [record["threads"] for record in found]
        _both(pane, threads, found)
        pane.set(title=text, xlabel="threads", ylabel="tokens/s", xticks=threads, ylim=0)
    _save(figure, path, any(record["case"] == "pp512" for record in races))


def _context(races: Sequence[Record], path: Path) -> None:
    figure, pane = plt.subplots(figsize=(5, 3))
    found = sorted(
        (record for record in races if record["workload"]["gen"]), key=lambda record: record["workload"]["depth"]
    )
    depths = [record["workload"]["depth"] for record in found]
    roof = [statistics.median(record["bandwidths"]) / record["bytes_per_step"] for record in found]
    pane.plot(depths, roof, color=ROOF, linestyle="--", label="roof, by the bandwidth in the same rounds")
    _both(pane, depths, found)
    pane.set(xlabel="tokens in the context", ylabel="tokens/s, generating", ylim=0)
    _save(figure, path, bool(found))


def _batch(races: Sequence[Record], path: Path) -> None:
    figure, pane = plt.subplots(figsize=(5, 3))
    counts = [record["workload"]["sequences"] for record in races]
    _both(pane, counts, races)
    pane.set(xlabel="sequences in one step", ylabel="tokens/s in all", xticks=counts, ylim=0)
    _save(figure, path, bool(races))


def _roofline(products: Sequence[Record], path: Path) -> None:
    """Draw multiply-adds per second over multiply-adds per byte of weights."""
    figure, pane = plt.subplots(figsize=(5, 3))
    if products:
        per_byte = [record["multiplies"] * record["tokens"] / record["bytes"] for record in products]
        rates = [record["value"] for record in products]
        floors = [record["read_bandwidth"] / 1e9 * x for record, x in zip(products, per_byte, strict=True)]
        roof = [min(floor, max(rates)) for floor in floors]
        pane.plot(per_byte, roof, color=ROOF, linestyle="--", label="roof, by the bandwidth beside each")
        pane.plot(per_byte, rates, color=OURS, marker="o", markersize=4, label="products of 1 to 512 tokens")
    pane.set(xscale="log", yscale="log", xlabel="multiply-adds per byte of weights", ylabel="GMAC/s")
    for axis in (pane.xaxis, pane.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    _save(figure, path, bool(products))


def _both(pane: Any, places: Sequence[int], found: Sequence[Record]) -> None:
    for label, side, color in _SIDES:
        pane.plot(places, [statistics.median(record[side]) for record in found], color=color, marker="o", label=label)


def _save(figure: Any, path: Path, has_data: bool) -> None:
    if has_data:
        for pane in figure.axes:
            pane.legend()
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None, "Creator": None}, transparent=True)
    plt.close(figure)
