"""Write a ``.m`` file of a real model's shape with random weights, to measure speed and memory without a download.

Run from the root of the repository: ``python tools/random_model.py --shape llama3.2-1b out.m --tokenizer out.t``.
What such a model says is noise, but activations stay finite and every byte is read as in the real one.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

# The repository may not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dllama.config import DType, LayerSpec, ModelConfig, QkNorm, RopeScaling
from dllama.errors import DllamaError, UsageError
from dllama.formats.m_layout import total_nbytes
from dllama.formats.m_writer import write_m_file
from dllama.formats.quants import RawRows
from dllama.formats.t_file import TokenizerData, write_t_file
from dllama.formats.tensor import TensorInfo

_LLAMA3 = ModelConfig(
    model_type="llama",
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_seq_len=8192,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    weight_type=DType.Q40,
    layers=(LayerSpec(),) * 32,
)
SHAPES = {
    "llama3-8b": _LLAMA3,
    "llama3.2-1b": replace(
        _LLAMA3,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        head_dim=64,
        max_seq_len=131072,
        layers=(LayerSpec(),) * 16,
        rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
    ),
    "qwen3-0.6b": replace(
        _LLAMA3,
        model_type="qwen3",
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=28,
        num_heads=16,
        vocab_size=151936,
        max_seq_len=40960,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        layers=(LayerSpec(QkNorm.HEAD),) * 28,
    ),
    "qwen3-30b-a3b": replace(
        _LLAMA3,
        model_type="qwen3_moe",
        hidden_size=2048,
        intermediate_size=6144,  # of no layer: all have experts
        num_layers=48,
        num_kv_heads=4,
        vocab_size=151936,
        max_seq_len=40960,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        layers=(LayerSpec(QkNorm.HEAD, has_experts=True),) * 48,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    ),
}
_CHUNK_BYTES = 1 << 24  # made and written at a time
_LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def random_rows(info: TensorInfo, rng: np.random.Generator) -> Iterator[RawRows]:
    """Give the stored rows of a random tensor in chunks, uint8 ``[n, row_bytes]``.

    Matrices have a mean near 0 and a standard deviation of 1 / sqrt(cols), so that what they multiply keeps its size;
    norm weights are near 1.
    """
    step = max(1, _CHUNK_BYTES // info.row_bytes)
    for begin in range(0, info.rows, step):
        yield _random_chunk(info, min(step, info.rows - begin), rng)


def _random_chunk(info: TensorInfo, rows: int, rng: np.random.Generator) -> RawRows:
    deviation = info.cols**-0.5
    if info.dtype.is_quantized:
        # Bytes are drawn as they lie: encoding would take ten times as long. Even quants have a deviation of
        # 4.6 (of 16 values) or 73 (of 255).
        raw = rng.integers(0, 256, (rows, info.row_bytes), np.uint8)
        blocks = raw.reshape(-1, info.dtype.row_bytes(32))
        if info.dtype is DType.Q80:
            blocks[blocks == 0x80] = 0x81  # -128 is no quant
        scale = np.float16(deviation / (4.6 if info.dtype is DType.Q40 else 73))
        blocks[:, :2] = np.array([scale], "<f2").view(np.uint8)
        return raw
    values = rng.random((rows, info.cols), np.float32)
    values -= np.float32(0.5)
    values *= np.float32(12**0.5 * deviation)
    if len(info.shape) == 1:
        values += np.float32(1)
    return values.astype("<f2" if info.dtype is DType.F16 else "<f4", copy=False).view(np.uint8)


def random_tokenizer(vocab_size: int, qwen: bool) -> TokenizerData:
    """Give a rank vocabulary of every byte, then all pairs of small letters, then triples and quadruples, as fit.

    Raises:
        UsageError: So few or so many tokens cannot be made.
    """
    special = _QWEN_SPECIAL if qwen else _LLAMA3_SPECIAL
    bos_id = vocab_size - len(special)
    if not 256 <= bos_id <= 256 + 26**2 + 26**3 + 26**4:
        raise UsageError(f"--vocab-size: a tokenizer can have 261 to 475000 tokens, not {vocab_size}")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ("".join(word) for size in (2, 3, 4) for word in itertools.product(letters, repeat=size))
    regular = [bytes([byte]) for byte in range(256)] + [w.encode() for w in itertools.islice(words, bos_id - 256)]
    eos_ids = (bos_id + 2, bos_id) if qwen else (bos_id + 1, bos_id + 4)
    pieces = (*regular, *(name.encode() for name in special))
    return TokenizerData(pieces, -np.arange(vocab_size, dtype=np.float32), bos_id, eos_ids, add_bos=not qwen)


class _Progress:
    """One line on a terminal, rewritten as tensors are done; nothing anywhere else."""

    def __init__(self, total: int) -> None:
        self._done, self._total, self._shown = 0, total, sys.stderr.isatty()

    def __call__(self, info: TensorInfo) -> None:
        self._done += info.nbytes
        if self._shown:
            end = "\n" if self._done == self._total else ""
            print(f"\r{self._done >> 20} of {self._total >> 20} MiB", end=end, file=sys.stderr, flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="OUT.m")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--layers", type=int, metavar="N", help="instead of the shape's own number")
    parser.add_argument("--weight-type", choices=[dtype.name.lower() for dtype in DType], default="q40")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="instead of the shape's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, metavar="OUT.t", help="also write a tokenizer of as many tokens")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; give its exit code."""
    options = _parse(arguments)
    shape = SHAPES[options.shape]
    num_layers = shape.num_layers if options.layers is None else options.layers
    config = replace(
        shape,
        num_layers=num_layers,
        layers=shape.layers[:1] * num_layers,
        vocab_size=shape.vocab_size if options.vocab_size is None else options.vocab_size,
        weight_type=DType[options.weight_type.upper()],
    )
    rng = np.random.default_rng(options.seed)
    try:
        if options.tokenizer:
            write_t_file(options.tokenizer, random_tokenizer(config.vocab_size, config.model_type.startswith("qwen3")))
        progress = None if config.problem() else _Progress(total_nbytes(config))
        write_m_file(options.model, config, lambda info: random_rows(info, rng), progress)
    except DllamaError as error:
        print(f"random_model: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
