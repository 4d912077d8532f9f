"""The models that are measured: random weights in real shapes, each written once to ``models/``."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dllama.formats.m_file import open_m_file

ROOT = Path(__file__).resolve().parent.parent
DLLAMA = [sys.executable, "-m", "dllama"]  # run in ROOT
FOLDER = ROOT / "models"


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape of ``tools/random_model.py``, all matrices Q40, with ``layers`` of its layers (None: all)."""

    name: str
    layers: int | None = None

    @property
    def title(self) -> str:
        """What tables call it."""
        return f"{self.name}, {self.layers} layers" if self.layers else self.name

    @property
    def model(self) -> Path:
        """Where its model file lies, or will."""
        return FOLDER / f"random_{self.name}{f'_{self.layers}' if self.layers else ''}.m"

    @property
    def tokenizer(self) -> Path:
        """Where its tokenizer lies, or will."""
        return self.model.with_suffix(".t")


LLAMA_1B, LLAMA_8B, QWEN_06B = Shape("llama3.2-1b"), Shape("llama3-8b", 4), Shape("qwen3-0.6b")
QWEN_MOE = Shape("qwen3-30b-a3b", 4)  # with experts
DENSE_SHAPES = {shape.name: shape for shape in (LLAMA_1B, LLAMA_8B, QWEN_06B)}
SHAPES = {**DENSE_SHAPES, QWEN_MOE.name: QWEN_MOE}
MODEL = LLAMA_1B.model  # of benchmarks that measure one


@dataclass(frozen=True, slots=True)
class TokenCosts:
    """What a token costs, by the matrices of a model; of experts by as many as it uses.

    Attributes:
        decode_bytes: Of the matrices that a generated token reads: all but the embedding.
        layer_bytes: Of the matrices of all layers.
        multiplies: Multiply-adds of a prompt's token, which needs the layers alone.
    """

    decode_bytes: int
    layer_bytes: int
    multiplies: int


def token_costs(model: Path) -> TokenCosts:
    """Read from a model's header what its tokens cost."""
    with open_m_file(model) as file:
        # Experts are of one size: the first stand for those that a token uses.
        idle = {str(expert) for expert in range(file.config.num_experts_per_tok, file.config.num_experts)}
        used = [tensor for tensor in file.tensors.values() if _expert(tensor.name) not in idle]
    matrices = [tensor for tensor in used if len(tensor.shape) == 2]
    layers = [matrix for matrix in matrices if matrix.name.startswith("layers.")]
    return TokenCosts(
        decode_bytes=sum(matrix.nbytes for matrix in matrices if matrix.name != "embed_tokens"),
        layer_bytes=sum(matrix.nbytes for matrix in layers),
        multiplies=sum(matrix.rows * matrix.cols for matrix in layers),
    )


def _expert(name: str) -> str:
    """Give the number of the expert that a tensor belongs to; nothing for others."""
    return name.partition(".experts.")[2].partition(".")[0]


def make_model(model: Path, tokenizer: Path, shape: Shape = LLAMA_1B) -> None:
    """Write a model and its tokenizer unless they are there; one that a user named must be there."""
    if not (model.is_file() and tokenizer.is_file()):
        if model.resolve() != shape.model:
            raise SystemExit(f"{model}: no such model, or no {tokenizer.name} beside it; without --model one is made")
        model.parent.mkdir(exist_ok=True)
        tool, layers = ROOT / "tools" / "random_model.py", ["--layers", str(shape.layers)] if shape.layers else []
        command = [sys.executable, tool, "--shape", shape.name, *layers, model, "--tokenizer", tokenizer]
        subprocess.run([*map(str, command)], check=True, cwd=ROOT)
