"""Train the model: AdamW, cosine schedule, and Q40 fake quantization for the last stretch.

Processes of one thread each share the rows of a step and average their gradients: on a machine that others use too,
this loses far less time than threads that wait for each other in every operation.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import texts
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from batches import IGNORED, Ids, batches, is_again, rows_of, split_documents
from model import Llama, ModelArgs
from tokenizers import Tokenizer
from torch import Tensor

TOKENS_PER_STEP = 2048
PEAK_LR, FINAL_LR, WARMUP_STEPS, WEIGHT_DECAY = 3e-3, 5e-5, 100, 0.05
FACT_WEIGHT, FACT_END = 6.0, 0.7  # weight of a fact that comes again; share of the training until which it holds
FACT_WORDS = [
    *texts.words("words", "female names"),
    *texts.words("words", "male names"),
    *texts.words("words", "animals"),
    *texts.words("words", "colors"),
    *(row[0] for row in texts.table("words", "wishes")),
    *texts.lines("words", "lost"),
]
QUANT_START = 0.85  # share of the training after which every matrix acts as its Q40 copy
CHECKPOINT_MINUTES = 3.0


def learning_rate(step: int, progress: float) -> float:
    """Cosine over the training's progress (0 to 1) after a linear start."""
    cosine = FINAL_LR + (PEAK_LR - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return cosine * min(1.0, (step + 1) / WARMUP_STEPS)


def fact_tokens(tokenizer: Tokenizer) -> Tensor:
    """Which tokens are names, animals, things or colors, which a story must not confuse."""
    is_fact = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.bool)
    for word in FACT_WORDS:
        for ids in (tokenizer.encode(form).ids for form in (word, f" {word}")):
            is_fact[ids[0]] = len(ids) == 1
    return is_fact


def loss_of(model: Llama, inputs: Tensor, targets: Tensor, bf16: bool = True, weights: Tensor | None = None) -> Tensor:
    """Mean loss per token, weighted if there are weights (row, seq)."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(inputs)
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    if weights is None:
        return losses.sum() / (targets != IGNORED).sum()
    return (losses * weights.flatten()).sum() / (weights * (targets != IGNORED)).sum()


@torch.no_grad()
def mean_loss(model: Llama, documents: list[Ids], bf16: bool = True) -> float:
    """Loss per token of whole documents, each on its own."""
    total = count = 0.0
    for document in documents:
        total += loss_of(model, *rows_of([document]), bf16).item() * (len(document) - 1)
        count += len(document) - 1
    return total / count


def make_optimizers(model: Llama) -> list[torch.optim.Optimizer]:
    """AdamW, with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)]


@dataclass
class Progress:
    """Where the training stands; saved with the weights."""

    step: int = 0
    batch: int = 0
    tokens: int = 0  # seen so far
    seconds: float = 0.0


class Trainer:
    """One of ``world_size`` processes; all hold the same weights, rank 0 keeps the clock and writes checkpoints."""

    def __init__(self, work: Path, minutes: float, rank: int, world_size: int, start: Path | None) -> None:
        torch.manual_seed(7)
        self.rank, self.world_size, self.total_seconds = rank, world_size, minutes * 60
        self.documents = split_documents(np.load(work / "train.npy"))
        self.held_out = split_documents(np.load(work / "test.npy"))[:64]
        self.is_fact = fact_tokens(Tokenizer.from_file(str(work / "tokenizer.json")))
        self.batches = batches(self.documents, TOKENS_PER_STEP, seed=7)
        self.model = Llama(ModelArgs())
        self.optimizers = make_optimizers(self.model)
        self.at = Progress()
        self.path = work / "checkpoint.pt"
        if self.path.exists():
            state = torch.load(self.path)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.at = Progress(**state["progress"])
        elif start:  # weights, and the place in the data, of an earlier run; all else begins anew
            state = torch.load(start)
            self.model.load_state_dict(state["model"])
            self.at = Progress(batch=state["progress"]["batch"])

    def run(self) -> None:
        """Train until the time is up, with a checkpoint every few minutes."""
        began = time.monotonic() - self.at.seconds
        saved, losses = time.monotonic(), list[float]()
        while self._common_clock(began) < self.total_seconds:
            losses.append(self._step())
            if self.rank == 0 and self.at.step % 100 == 0:
                minute = self.at.seconds / 60
                place = f"step {self.at.step}  {self.at.tokens} tokens  minute {minute:.1f}"
                print(f"{place}  loss {np.mean(losses):.4f}", flush=True)
                losses.clear()
            if self.rank == 0 and time.monotonic() - saved > CHECKPOINT_MINUTES * 60:
                self._checkpoint()
                saved = time.monotonic()
        if self.rank == 0:
            self._checkpoint()

    def _common_clock(self, began: float) -> float:
        clock = torch.tensor([time.monotonic() - began], dtype=torch.float64)
        dist.broadcast(clock, 0)
        self.at.seconds = clock.item()
        return self.at.seconds

    def _step(self) -> float:
        progress = self.at.seconds / self.total_seconds
        if progress >= QUANT_START and not self.model.fake_quant:
            self.model.set_fake_quant(True)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.at.step, progress)
        batch = [self.documents[index] for index in self.batches[self.at.batch]]
        inputs, targets = rows_of(batch)
        mine = slice(self.rank, None, self.world_size)
        weights = self._weights(batch, targets)[mine] if progress < FACT_END else None
        loss = loss_of(self.model, inputs[mine], targets[mine], weights=weights)
        loss.backward()
        self._average_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.at.step += 1
        self.at.batch = (self.at.batch + 1) % len(self.batches)
        self.at.tokens += sum(map(len, batch))
        return loss.item()

    def _weights(self, batch: list[Ids], targets: Tensor) -> Tensor:
        is_heavy = self.is_fact[targets.clamp(min=0)] & is_again(batch, targets.shape[1])
        return torch.where(is_heavy, FACT_WEIGHT, 1.0)

    def _average_gradients(self) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world_size
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _checkpoint(self) -> None:
        print(f"step {self.at.step}  held-out loss {mean_loss(self.model, self.held_out):.4f}", flush=True)
        partial = self.path.with_suffix(".partial")
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save({"model": self.model.state_dict(), "optimizers": states, "progress": vars(self.at)}, partial)
        partial.replace(self.path)


def _process(rank: int, work: Path, minutes: float, world_size: int, start: Path | None) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(work / "rendezvous"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    Trainer(work, minutes, rank, world_size, start).run()
    dist.destroy_process_group()


def train(work: Path, minutes: float, processes: int = 2, start: Path | None = None) -> None:
    """Train for ``minutes``, counted on this machine.

    Continues from work/checkpoint.pt if there is one; otherwise begins with the weights of ``start``, if that is given.
    """
    if processes not in (1, 2):
        raise ValueError(f"processes: expected 1 or 2, found {processes}")
    (work / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(_process, (work, minutes, processes, start), nprocs=processes)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo_model"), help="folder with train.npy and test.npy"
    )
    parser.add_argument("--minutes", type=float, default=26.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--start", type=Path, help="checkpoint of an earlier run whose weights this one begins with")
    args = parser.parse_args()
    train(args.work, args.minutes, args.processes, args.start)


if __name__ == "__main__":
    main()
