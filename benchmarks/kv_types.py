"""What keys and values of each type cost: bytes of a position, and the perplexity of the bundled model.

Run from the root: ``.venv/bin/python benchmarks/kv_types.py``. The text is told by the bundled model itself, so that it
is of the kind it knows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import LLAMA_1B, ROOT, make_model
from benchmarks.records import Record, figure, is_met, show, write
from dllama.cli.parser import whole
from dllama.cli.perplexity import results
from dllama.config import DType
from dllama.engine import Engine, SamplingParams

DEMO = ROOT / "dllama" / "demo"
POSITIONS = 1024


def told(stories: int) -> list[list[int]]:
    """Give the token ids of stories that the bundled model tells."""
    with Engine.load(DEMO / "model.m", DEMO / "tokenizer.t") as engine:
        assert engine.tokenizer is not None
        prompt, texts = engine.tokenizer.encode("Once upon a time"), []
        for seed in range(stories):
            sampling = SamplingParams(temperature=1, seed=seed, max_tokens=POSITIONS - len(prompt), ignore_eos=True)
            said = [output.token_id for output in engine.generate(prompt, sampling)]
            texts.append(prompt + [token_id for token_id in said if token_id is not None])
        return texts


def perplexity(kv_type: DType, texts: list[list[int]]) -> float:
    """Give the bundled model's perplexity on texts."""
    with Engine.load(DEMO / "model.m", kv_type=kv_type) as engine:
        return results([float(value) for text in texts for value in engine.score(text[: engine.max_seq_len])])[
            "perplexity"
        ]


def kv_bytes(kv_type: DType) -> float:
    """Give the bytes of a position of the 1B shape."""
    make_model(LLAMA_1B.model, LLAMA_1B.tokenizer)
    with Engine.load(LLAMA_1B.model, kv_type=kv_type, max_seq_len=POSITIONS) as engine:
        return engine.memory.kv / POSITIONS


def measures(stories: int) -> Iterator[Record]:
    """Compare Q80 with F16."""
    texts = told(stories)
    one, other = (perplexity(kv_type, texts) for kv_type in (DType.Q80, DType.F16))
    more = {"model": "the bundled model", "perplexities": {"q80": one, "f16": other}, "at_least": False}
    yield figure("kv_types", "perplexity with Q80 KV / F16 KV", one / other, 1.005, "", **more)
    small, large = kv_bytes(DType.Q80), kv_bytes(DType.F16)
    more = {"model": LLAMA_1B.title, "bytes": {"q80": small, "f16": large}, "at_least": False}
    yield figure("kv_types", "bytes of Q80 KV / F16 KV", small / large, 0.6, "", **more)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=whole(1, 1024), default=5, metavar="N", help="stories (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures in a file")
    args = parser.parse_args()
    records = show(measures(args.rounds))
    if args.json:
        write(args.json, records, {})
    return 0 if all(map(is_met, records)) else 1


if __name__ == "__main__":
    sys.exit(main())
