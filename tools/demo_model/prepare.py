"""Write the tokenizer and the token streams: train.npy and test.npy, from different seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from data import documents, encode
from tokenizer import check_ranks, train_tokenizer

TRAIN_SEED, TEST_SEED, TOKENIZER_SEED = 1_000, 900_000, 500_000
TRAIN_CHUNKS, TEST_CHUNKS = 160, 1


def prepare(work: Path) -> None:
    """Write tokenizer.json, train.npy and test.npy into ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "tokenizer.json"
    tokenizer = train_tokenizer(documents(TOKENIZER_SEED, 12_000), path)
    compared = check_ranks(tokenizer, documents(TEST_SEED, 500))
    print(
        f"tokenizer: {tokenizer.get_vocab_size()} tokens, equal to a rank BPE on {compared} tokens of text", flush=True
    )
    for name, seed, chunks in (("train", TRAIN_SEED, TRAIN_CHUNKS), ("test", TEST_SEED, TEST_CHUNKS)):
        ids = encode(path, seed, chunks)
        np.save(work / f"{name}.npy", ids)
        print(f"{name}: {len(ids)} tokens", flush=True)


if __name__ == "__main__":
    prepare(Path("build/demo_model"))
