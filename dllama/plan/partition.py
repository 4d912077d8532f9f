"""Who owns what: a model's heads, FFN columns and vocabulary dealt out to nodes.

Pure functions of (config, world size, shares), in exact arithmetic: root and workers compute the same plan and compare
its ``digest()``. Knows no file, no socket and no tensor; ``slices.py`` says what a shard means for each tensor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise

from dllama.config import BLOCK_SIZE, ModelConfig
from dllama.errors import UsageError


@dataclass(frozen=True, slots=True)
class Range:
    """Indices ``begin`` to ``end - 1``."""

    begin: int
    end: int

    @property
    def size(self) -> int:
        """How many."""
        return self.end - self.begin

    def scaled(self, factor: int) -> Range:
        """The same range counted in parts of ``1 / factor``."""
        return Range(self.begin * factor, self.end * factor)


@dataclass(frozen=True, slots=True)
class Shard:
    """What one node owns of every layer of its stage, and of the vocabulary."""

    kv_heads: Range  # with all query heads that use them
    ffn: Range  # columns of the intermediate size
    vocab: Range  # rows of lm_head


@dataclass(frozen=True, slots=True)
class Stage:
    """A range of layers and the shards of the nodes that compute it, by rank."""

    layers: Range
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages, in the order of the layers. One stage today: tensor parallelism over all nodes."""

    stages: tuple[Stage, ...]

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards of the only stage."""
        (stage,) = self.stages
        return stage.shards

    def digest(self) -> str:
        """Hex SHA-256 that equal plans share, for the handshake."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def kv_heads_per_unit(config: ModelConfig) -> int:
    """KV heads that must stay together: the fewest whose query outputs fill whole quantization blocks.

    The outputs of a node's query heads are the inputs of its slice of ``o_proj``, which is cut between blocks only.
    """
    outputs_per_kv_head = config.group_size * config.head_dim
    return BLOCK_SIZE // math.gcd(BLOCK_SIZE, outputs_per_kv_head)


def max_world_size(config: ModelConfig) -> int:
    """Most nodes that can share the model, each with at least one unit of everything."""
    return min(_num_units(config).values())


def make_plan(config: ModelConfig, world_size: int = 1, shares: Sequence[float] | None = None) -> Plan:
    """Share a model among ``world_size`` nodes.

    Args:
        config: A valid model config.
        world_size: Number of nodes.
        shares: Weight of each node, any positive numbers; None: equal. Every node gets at least one unit of each kind
            (KV heads, 32 FFN columns, 32 vocabulary rows); beyond that as near to its share as whole units allow.

    Raises:
        UsageError: More nodes than units, or shares that are not ``world_size`` positive numbers.
    """
    weights = _weights(world_size, shares)
    scarcest, num_units = min(_num_units(config).items(), key=lambda item: item[1])
    if not 1 <= world_size <= num_units:
        raise UsageError(
            f"number of nodes: expected 1 to {num_units}, as this model has {num_units} {scarcest} to share out, "
            f"found {world_size}; use fewer workers"
        )
    kv_heads = _cut(config.num_kv_heads, kv_heads_per_unit(config), weights)
    ffn = _cut(config.intermediate_size, BLOCK_SIZE, weights)
    vocab = _cut(config.vocab_size, BLOCK_SIZE, weights)
    shards = tuple(Shard(*ranges) for ranges in zip(kv_heads, ffn, vocab, strict=True))
    return Plan(stages=(Stage(layers=Range(0, config.num_layers), shards=shards),))


def _num_units(config: ModelConfig) -> dict[str, int]:
    """What is shared out, and how many units of it there are."""
    return {
        "groups of KV heads": config.num_kv_heads // kv_heads_per_unit(config),
        f"blocks of {BLOCK_SIZE} FFN columns": config.intermediate_size // BLOCK_SIZE,
        f"blocks of {BLOCK_SIZE} vocabulary rows": math.ceil(config.vocab_size / BLOCK_SIZE),
    }


def _weights(world_size: int, shares: Sequence[float] | None) -> list[Fraction]:
    if shares is None:
        return [Fraction(1)] * max(world_size, 1)
    if len(shares) != world_size or not all(math.isfinite(share) and share > 0 for share in shares):
        raise UsageError(f"shares: expected {world_size} positive numbers, one per node, found {list(shares)}")
    return [Fraction(share) for share in shares]


def _cut(size: int, unit: int, weights: Sequence[Fraction]) -> list[Range]:
    """Cut ``size`` things into consecutive ranges of whole units (the last unit may be ragged), one per weight."""
    bounds = accumulate(_deal(math.ceil(size / unit), weights), initial=0)
    return [Range(begin * unit, min(end * unit, size)) for begin, end in pairwise(bounds)]


def _deal(num_units: int, weights: Sequence[Fraction]) -> list[int]:
    """Deal units out by weight: one each, then largest remainders first, lower ranks first among equals."""
    ideal = [weight * num_units / sum(weights) for weight in weights]
    counts = [max(1, math.floor(amount)) for amount in ideal]
    ranks = range(len(weights))
    while sum(counts) < num_units:
        counts[max(ranks, key=lambda rank: (ideal[rank] - counts[rank], -rank))] += 1
    while sum(counts) > num_units:  # the ones given to small shares come from those furthest above their own
        richest = max((rank for rank in ranks if counts[rank] > 1), key=lambda rank: (counts[rank] - ideal[rank], rank))
        counts[richest] -= 1
    return counts
