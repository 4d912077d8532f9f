"""The random models of `tests/golden/families` as Hugging Face folders: weights follow from a seed and a tensor's name.

Used by `tests/test_family_golden.py` and, to make the goldens, by `tools/golden/make_families.py`. Knows nothing of
this project's own names and readers, which the goldens are there to check.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hf_folders import stored, write_safetensors  # type: ignore[import-not-found]

FOLDER = Path(__file__).parent / "golden" / "families"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Draw:
    """What a tensor is filled with: values spread evenly over ``mean - spread`` to ``mean + spread``."""

    shape: tuple[int, ...]
    mean: float
    spread: float

    def values(self, seed: int, name: str) -> Floats:
        """Give the values: upper bits of random integers, and arithmetic that every machine does alike."""
        key = hashlib.sha256(f"{seed} {name}".encode()).digest()
        raw = np.random.PCG64(int.from_bytes(key[:16], "little")).random_raw(math.prod(self.shape))
        units = (raw >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0
        return (self.mean + self.spread * units).astype(np.float32).reshape(self.shape)


@dataclass(frozen=True)
class Model:
    """A checkpoint: its ``config.json``, and how each of its tensors is filled, by its name there."""

    config: Mapping[str, Any]
    seed: int
    draws: Mapping[str, Draw]

    @property
    def family(self) -> str:
        """``model_type``."""
        return str(self.config["model_type"])

    def tensors(self) -> dict[str, Floats]:
        """Give the weights by name."""
        return {name: draw.values(self.seed, name) for name, draw in self.draws.items()}

    def write(self, folder: Path) -> Path:
        """Write a Hugging Face folder; give it."""
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        arrays = {name: stored(values, "F32") for name, values in self.tensors().items()}
        write_safetensors(folder / "model.safetensors", arrays)
        return folder


@dataclass(frozen=True)
class FamilyGolden:
    """A model and what transformers gave for it.

    Attributes:
        max_seq_len: The context to load it with; None: its own.
        positions: Of the logits.
        float32_error: Largest difference of transformers' float32 logits from the float64 ones, by position.
        greedy: What the float64 model continues the first ``prompt_len`` tokens with.
    """

    name: str
    model: Model
    max_seq_len: int | None
    prompt_len: int
    token_ids: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    logits: Floats
    float32_error: Floats
    greedy: npt.NDArray[np.int32]

    @property
    def family(self) -> str:
        """``model_type``."""
        return self.model.family

    @classmethod
    def load(cls, name: str) -> FamilyGolden:
        """Read NAME.json and NAME.npz."""
        facts = json.loads((FOLDER / f"{name}.json").read_text())
        draws = {tensor: Draw(tuple(shape), mean, spread) for tensor, (shape, mean, spread) in facts["tensors"].items()}
        model = Model(facts["config"], facts["seed"], draws)
        with np.load(FOLDER / f"{name}.npz") as arrays:
            return cls(name, model, facts["max_seq_len"], facts["prompt_len"], **{key: arrays[key] for key in arrays})
