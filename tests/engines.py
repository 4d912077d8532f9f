"""Engines on random models of a few kilobytes, and what tests of several files do with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model_files import tiny_config, write_tiny_model, write_tiny_tokenizer  # type: ignore[import-not-found]

from dllama.config import DType
from dllama.engine import Engine, Output, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
PROMPT = [5, 6, 7, 8]
# Samplings of every kind: greedy and drawn, with and without changed logits and filters.
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy, changed": {"temperature": 0.0, "repeat_penalty": 1.3, "frequency_penalty": 0.3, "logit_bias": {9: 1.0}},
    "temperature": {"temperature": 1.0, "top_p": 1.0},
    "temperature, changed": {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.5},
    "top-k": {"temperature": 0.9, "top_p": 1.0, "top_k": 12},
    "top-p": {"temperature": 1.2, "top_p": 0.6, "repeat_penalty": 1.1},
    "min-p": {"temperature": 1.5, "top_p": 1.0, "min_p": 0.05},
    "all": {"temperature": 0.7, "top_p": 0.95, "top_k": 50, "min_p": 0.01, "logit_bias": {5: -3.0}},
}


def write_models(folder: Path) -> Path:
    """Write one model of each kind, and a tokenizer for all; give the folder."""
    write_tiny_model(folder / "model.m", tiny_config(weight_type=DType.F32))
    write_tiny_model(folder / "q40.m", tiny_config())
    write_tiny_model(folder / "f16.m", tiny_config(weight_type=DType.F16))
    write_tiny_model(folder / "qwen3.m", tiny_config("qwen3", DType.Q80))
    write_tiny_tokenizer(folder / "tokenizer.t")
    return folder


def load_engine(files: Path) -> Engine:
    """Load the F32 model."""
    return Engine.load(files / "model.m", files / "tokenizer.t", num_threads=1, kv_tokens=1024)


def tokens(outputs: Iterable[Output]) -> list[int]:
    return [output.token_id for output in outputs if output.token_id is not None]


def run(engine: Engine) -> dict[int, list[Output]]:
    """Step until there is nothing left; outputs by request."""
    outputs: dict[int, list[Output]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs
