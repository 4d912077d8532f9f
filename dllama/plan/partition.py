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

    heads: Range  # query heads; none on a node without attention
    kv_heads: Range  # those that its query heads use; other nodes may hold them too
    ffn: Range  # columns of the intermediate size
    vocab: Range  # rows of lm_head
    expert_ffn: Range = Range(0, 0)  # columns of each expert's intermediate size; none in models without experts


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


def node_name(rank: int) -> str:
    """Say which node is meant where no address is known."""
    return f"worker {rank}" if rank else "the root"


def kv_heads_per_unit(config: ModelConfig) -> int:
    """KV heads that must stay together: the fewest whose query outputs fill whole quantization blocks.

    The outputs of a node's query heads are the inputs of its slice of ``o_proj``, which is cut between blocks only.
    """
    outputs_per_kv_head = config.group_size * config.head_dim
    return BLOCK_SIZE // math.gcd(BLOCK_SIZE, outputs_per_kv_head)


def max_world_size(config: ModelConfig) -> int:
    """Most nodes that can share the model: each owns FFN columns and vocabulary rows, but not always heads."""
    return min(_num_blocks(config).values())


def make_plan(config: ModelConfig, world_size: int = 1, shares: Sequence[float] | None = None) -> Plan:
    """Share a model among ``world_size`` nodes.

    Every node gets its share of FFN columns, vocabulary rows and heads, rounded up or down to whole units, and at least
    one unit of each; what lifts small shares to one unit is taken from those furthest above their own.

    Heads on more nodes than units of KV heads: each unit has nodes of its own, consecutive and at least one, chosen so
    that they have about the same sum of shares. A unit that is a single KV head is held by several of its nodes, who
    share its query heads; any other goes whole to one of them. Nodes for which nothing is left own no heads.

    Args:
        config: A valid model config.
        world_size: Number of nodes.
        shares: Weight of each node, any positive numbers; None: equal.

    Raises:
        UsageError: More nodes than blocks, or shares that are not ``world_size`` positive numbers.
    """
    scarcest, num_blocks = min(_num_blocks(config).items(), key=lambda item: item[1])
    if not 1 <= world_size <= num_blocks:
        raise UsageError(
            f"number of nodes: expected 1 to {num_blocks}, as this model has {num_blocks} {scarcest} to share out, "
            f"found {world_size}; use fewer workers"
        )
    weights = _weights(world_size, shares)
    heads = _cut_heads(config, weights)
    kv_heads = [_kv_heads_of(part, config.group_size) for part in heads]
    ffn = _cut(config.intermediate_size, BLOCK_SIZE, weights)
    vocab = _cut(config.vocab_size, BLOCK_SIZE, weights)
    expert_ffn = _cut(config.moe_intermediate_size if config.has_experts else 0, BLOCK_SIZE, weights)
    shards = tuple(Shard(*ranges) for ranges in zip(heads, kv_heads, ffn, vocab, expert_ffn, strict=True))
    return Plan(stages=(Stage(layers=Range(0, config.num_layers), shards=shards),))


def _num_blocks(config: ModelConfig) -> dict[str, int]:
    """What every node needs at least one of, and how many there are."""
    blocks = {
        f"blocks of {BLOCK_SIZE} FFN columns": config.intermediate_size // BLOCK_SIZE,
        f"blocks of {BLOCK_SIZE} vocabulary rows": math.ceil(config.vocab_size / BLOCK_SIZE),
    }
    if config.has_experts:
        blocks[f"blocks of {BLOCK_SIZE} columns of each expert"] = config.moe_intermediate_size // BLOCK_SIZE
    return blocks


def _weights(world_size: int, shares: Sequence[float] | None) -> list[Fraction]:
    if shares is None:
        return [Fraction(1)] * world_size
    if len(shares) != world_size or not all(
        isinstance(share, int | float) and 0 < share < math.inf for share in shares
    ):
        raise UsageError(f"shares: expected {world_size} positive numbers, one per node, found {list(shares)}")
    return [Fraction(share) for share in shares]


def _cut_heads(config: ModelConfig, weights: Sequence[Fraction]) -> list[Range]:
    """Cut the query heads into consecutive ranges, one per weight: whole units while there is one for every node."""
    kv_heads = kv_heads_per_unit(config)
    heads, num_units = kv_heads * config.group_size, config.num_kv_heads // kv_heads
    if len(weights) <= num_units:
        return _cut(config.num_heads, heads, weights)
    # All query heads of a node must use the same number of KV heads, so only a single KV head's can be shared out.
    part = BLOCK_SIZE // math.gcd(BLOCK_SIZE, config.head_dim) if kv_heads == 1 else heads
    counts: list[int] = []
    for begin, end in pairwise(_borders(num_units, weights)):
        counts += _deal(heads // part, weights[begin:end])
    bounds = accumulate(counts, initial=0)
    return [Range(begin, end).scaled(part) for begin, end in pairwise(bounds)]


def _kv_heads_of(heads: Range, group_size: int) -> Range:
    """Give the KV heads that query heads use; an empty range for none."""
    begin = heads.begin // group_size
    return Range(begin, -(-heads.end // group_size) if heads.size else begin)


def _borders(num_units: int, weights: Sequence[Fraction]) -> list[int]:
    """First node of each unit, and the number of nodes: every unit has some, and no border alone could fit better."""
    sums = list(accumulate(weights, initial=Fraction(0)))
    borders = [0]
    for unit in range(1, num_units):
        target = sums[-1] * unit / num_units
        possible = range(borders[-1] + 1, len(weights) - (num_units - unit) + 1)
        borders.append(min(possible, key=lambda border: abs(sums[border] - target)))
    return [*borders, len(weights)]


def _cut(size: int, unit: int, weights: Sequence[Fraction]) -> list[Range]:
    """Cut ``size`` things into consecutive ranges of whole units (the last unit may be ragged), one per weight."""
    bounds = accumulate(_deal(math.ceil(size / unit), weights), initial=0)
    return [Range(begin * unit, min(end * unit, size)) for begin, end in pairwise(bounds)]


def _deal(num_units: int, weights: Sequence[Fraction]) -> list[int]:
    """Deal units out by weight, one each if there are enough: largest remainders first, lower ranks among equals."""
    total, ranks = sum(weights), range(len(weights))
    ideal = [weight * num_units / total for weight in weights]
    least = 1 if num_units >= len(weights) else 0
    counts = [max(least, math.floor(amount)) for amount in ideal]
    for rank in sorted(ranks, key=lambda rank: counts[rank] - ideal[rank])[: max(0, num_units - sum(counts))]:
        counts[rank] += 1
    while sum(counts) > num_units:  # the ones given to small shares come from those furthest above their own
        richest = max((rank for rank in ranks if counts[rank] > 1), key=lambda rank: (counts[rank] - ideal[rank], rank))
        counts[richest] -= 1
    return counts
