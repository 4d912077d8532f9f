"""Sampling with a KV cache: temperature and top-p, many rows of one prompt at once."""

from __future__ import annotations

import torch
from model import Llama
from torch import Tensor


def _choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One token per row of logits (rows, vocab)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities, ids = torch.softmax(logits / temperature, dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities.masked_fill(before >= top_p, 0.0)
    picked = torch.multinomial(kept, 1, generator=generator)
    return ids.gather(1, picked).squeeze(1)


@torch.no_grad()
def sample(
    model: Llama,
    prompt: list[int],
    stops: set[int],
    *,
    rows: int = 1,
    seed: int = 0,
    temperature: float = 0.8,
    top_p: float = 0.9,
    max_new_tokens: int = 480,
) -> list[list[int]]:
    """Continuations of `prompt`, each with its stop token if it came to one."""
    generator = torch.Generator().manual_seed(seed)
    caches: list[list[Tensor]] = [[] for _ in model.layers]
    tokens = torch.tensor([prompt] * rows)
    outputs: list[list[int]] = [[] for _ in range(rows)]
    done = [False] * rows
    for _ in range(min(max_new_tokens, model.args.max_seq_len - len(prompt))):
        chosen = _choose(model(tokens, caches)[:, -1].float(), temperature, top_p, generator)
        for row, token in enumerate(chosen.tolist()):
            if not done[row]:
                outputs[row].append(token)
                done[row] = token in stops
        if all(done):
            break
        tokens = chosen[:, None]
    return outputs
