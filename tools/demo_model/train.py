"""Train the model: AdamW, cosine schedule, and Q40 fake quantization for the last stretch."""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import Llama, ModelArgs

TOKENS_PER_STEP = 4096
SEQ_LENS = (512, 512, 512, 512, 512, 512, 512, 1024)  # taken in turn
PEAK_LR, FINAL_LR, WARMUP_STEPS, WEIGHT_DECAY = 2e-3, 4e-5, 150, 0.05
QUANT_START = 0.85  # share of the training after which every matrix acts as its Q40 copy


def learning_rate(step: int, progress: float) -> float:
    cosine = FINAL_LR + (PEAK_LR - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return cosine * min(1.0, (step + 1) / WARMUP_STEPS)


def batch(tokens: np.ndarray, step: int, offset: int) -> tuple[Tensor, int]:
    """The next rows (row, seq + 1) of the token stream, and the offset after them."""
    seq_len = SEQ_LENS[step % len(SEQ_LENS)]
    if offset + TOKENS_PER_STEP + 1 > len(tokens):
        offset = 0
    starts = range(offset, offset + TOKENS_PER_STEP, seq_len)
    rows = np.stack([tokens[start : start + seq_len + 1] for start in starts]).astype(np.int64)
    return torch.from_numpy(rows), offset + TOKENS_PER_STEP


def loss_of(model: Llama, rows: Tensor, bf16: bool = True) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(rows[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: Llama, tokens: np.ndarray, num_rows: int = 32) -> float:
    rows = torch.from_numpy(tokens[: num_rows * 512].reshape(num_rows, 512).astype(np.int64))
    return float(np.mean([loss_of(model, part).item() for part in rows.split(8)]))


def make_optimizer(model: Llama) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)


def save(path: Path, **state: object) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train(work: Path, minutes: float, threads: int, checkpoint_minutes: float = 3.0) -> Path:
    """Train for `minutes` of this machine's time; continues from work/checkpoint.pt when there is one."""
    torch.set_num_threads(threads)
    torch.manual_seed(7)
    tokens, held_out = np.load(work / "train.npy"), np.load(work / "test.npy")
    model = Llama(ModelArgs())
    optimizer = make_optimizer(model)
    path = work / "checkpoint.pt"
    step = offset = 0
    spent = 0.0
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, offset, spent = state["step"], state["offset"], state["spent"]
    started, saved, recent = time.monotonic() - spent, time.monotonic(), []

    def checkpoint() -> None:
        save(path, model=model.state_dict(), optimizer=optimizer.state_dict(), step=step, offset=offset, spent=spent)

    while (spent := time.monotonic() - started) < minutes * 60:
        progress = spent / (minutes * 60)
        if progress >= QUANT_START and not model.fake_quant:
            checkpoint()
            print(f"step {step}: Q40 fake quantization from here on", flush=True)
            model.set_fake_quant(True)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress)
        rows, offset = batch(tokens, step, offset)
        loss = loss_of(model, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        step += 1
        if step % 50 == 0:
            seen = step * TOKENS_PER_STEP
            print(f"step {step}  tokens {seen / 1e6:.2f}M  minute {spent / 60:.1f}  loss {np.mean(recent):.4f}", flush=True)
            recent.clear()
        if time.monotonic() - saved > checkpoint_minutes * 60:
            print(f"step {step}  held-out loss {held_out_loss(model, held_out):.4f}", flush=True)
            checkpoint()
            saved = time.monotonic()
    checkpoint()
    print(f"done: step {step}  held-out loss {held_out_loss(model, held_out):.4f}", flush=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo_model_work"), help="folder with train.npy and test.npy")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    train(args.work, args.minutes, args.threads)


if __name__ == "__main__":
    main()
