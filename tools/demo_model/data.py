"""Documents as token ids: plain stories and chats in the Llama-3 layout, from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from chats import Message, chat
from stories import tell
from tokenizer import BOS, EOH, EOS, EOT, SOH
from tokenizers import Tokenizer

STORY_SHARE = 0.5
CHUNK = 500  # documents per seed


def render_chat(messages: list[Message], generation_prompt: bool = False) -> str:
    """The Llama-3 layout, beginning with BOS."""
    text = BOS + "".join(f"{SOH}{role}{EOH}\n\n{content}{EOT}" for role, content in messages)
    return text + f"{SOH}assistant{EOH}\n\n" if generation_prompt else text


def documents(seed: int, count: int) -> Iterator[str]:
    """Give ``count`` texts, half of them plain stories."""
    rng = random.Random(seed)
    for _ in range(count):
        yield BOS + tell(rng).text + EOS if rng.random() < STORY_SHARE else render_chat(chat(rng))


def _encode_chunk(job: tuple[int, str]) -> np.ndarray:
    seed, tokenizer_path = job
    tokenizer = Tokenizer.from_file(tokenizer_path)
    ids = [token for text in documents(seed, CHUNK) for token in tokenizer.encode(text).ids]
    return np.array(ids, dtype=np.uint16)


def encode(tokenizer_path: Path, first_seed: int, num_chunks: int) -> np.ndarray:
    """All tokens of `num_chunks` × CHUNK documents, one after the other."""
    jobs = [(first_seed + index, str(tokenizer_path)) for index in range(num_chunks)]
    with Pool(2) as pool:
        return np.concatenate(pool.map(_encode_chunk, jobs))
