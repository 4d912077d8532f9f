"""Tiny Hugging Face folders for tests, written by a few lines of their own, sound and otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from model_files import random_weights, tiny_config  # type: ignore[import-not-found]

from dllama.families import describe

CONFIG: dict[str, Any] = {  # of `tiny_config()`
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
Array = tuple[str, tuple[int, ...], bytes]  # number type, shape, bytes


def stored(values: np.ndarray, number_type: str) -> Array:
    """Give values, which `number_type` must hold exactly, as a file does."""
    kinds = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
    if number_type == "BF16":
        return "BF16", values.shape, (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return number_type, values.shape, values.astype(kinds[number_type]).tobytes()


def rounded(values: np.ndarray, number_type: str) -> np.ndarray:
    """Cut float32 values so that `number_type` holds them."""
    if number_type == "BF16":
        return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return values.astype(np.float16).astype(np.float32) if number_type == "F16" else values


def safetensors_bytes(header: Mapping[str, Any] | bytes, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def write_safetensors(path: Path, arrays: Mapping[str, Array], metadata: bool = True) -> None:
    """Write arrays in their order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}} if metadata else {}
    end = 0
    for name, (number_type, shape, raw) in arrays.items():
        header[name] = {"dtype": number_type, "shape": shape, "data_offsets": [end, end + len(raw)]}
        end += len(raw)
    path.write_bytes(safetensors_bytes(header, b"".join(raw for *_, raw in arrays.values())))


def checkpoint(
    number_type: str = "BF16", seed: int = 0, **settings: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Give a config, and weights of `tiny_config` by the names of Hugging Face that `number_type` can hold."""
    config = {**CONFIG, **settings}
    described = describe(config, "config.json")
    weights = random_weights(tiny_config(), seed)
    if config.get("tie_word_embeddings"):
        weights["lm_head"] = weights["embed_tokens"]
    return config, {part.name: rounded(weights[ours], number_type) for ours, part in described.tensors.items()}


def own_names(config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give the same weights by our names, as a `.m` file is written from."""
    return {ours: weights[part.name] for ours, part in describe(dict(config), "config.json").tensors.items()}


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    arrays: Mapping[str, Array],
    shards: Sequence[Iterable[str]] | None = None,
    has_index: bool = True,
) -> Path:
    """Write a folder; `shards` are the names of the tensors in each file; None: all in `model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards is None:
        write_safetensors(folder / "model.safetensors", arrays)
        return folder
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        held = {name: arrays[name] for name in names}
        write_safetensors(folder / file, held)
        weight_map |= dict.fromkeys(held, file)
    if has_index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def tiny_folder(folder: Path, number_type: str = "BF16", seed: int = 0, **settings: Any) -> dict[str, np.ndarray]:
    """Write a folder of random weights in one file; give them by our names."""
    config, weights = checkpoint(number_type, seed, **settings)
    write_folder(folder, config, {name: stored(values, number_type) for name, values in weights.items()})
    return own_names(config, weights)
