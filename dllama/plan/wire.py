"""How many bytes the nodes send each other in a step: pure arithmetic over the frames that the core exchanges.

Knows the sizes of frames (``csrc/net/frame.h``, ``csrc/model/batch.h``), not what is in them. Heartbeats and the
headers of TCP and IP come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

from dllama.config import BLOCK_SIZE, DType, ModelConfig
from dllama.plan.partition import cut

PAGE_SIZE = 64  # positions in one KV page, as in the core
_HEADER = 32  # bytes before every message
_COUNTS, _ITEM = 16, 12  # of a step frame: how many of each kind, and each span, page change and want
_CANDIDATES = 64  # about what a worker answers for one token that is sampled, its header included
_SQUARES = 4  # the sum of squares of a node's range of one token, F32
_ACTIVATION_BLOCK = BLOCK_SIZE + 4  # what quantized products read: 8-bit values and a scale in F32
_EXCHANGES_PER_LAYER = 2  # behind o_proj and behind down_proj


class Exchange(Enum):
    """How partial sums are added up."""

    DIRECT = "direct"  # every rank sends all of its sums to every other rank
    REDUCE_SCATTER = "reduce-scatter"  # every rank adds up a range of the hidden size, and gives it to all


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one node sends and receives."""

    sent: int
    received: int

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.sent + other.sent, self.received + other.received)

    def times(self, count: int) -> Traffic:
        """The same ``count`` times."""
        return Traffic(self.sent * count, self.received * count)


def step_traffic(
    config: ModelConfig, world_size: int, wire_type: DType, exchange: Exchange, num_tokens: int, num_wants: int
) -> list[Traffic]:
    """Count the bytes of one step of one sequence.

    Args:
        config: A valid model config.
        world_size: Number of nodes.
        wire_type: Number type of partial sums and embedded rows between nodes.
        exchange: How partial sums are added up.
        num_tokens: Tokens in the step; each whole page of them brings a page change.
        num_wants: For how many of them the next token is sampled.

    Returns:
        The traffic of each rank.
    """
    peers = world_size - 1
    if exchange is Exchange.DIRECT:
        message = _HEADER + num_tokens * wire_type.row_bytes(config.hidden_size)
        sums = [Traffic(peers * message, peers * message)] * world_size
    else:
        sums = _reduce_scatter(config, world_size, wire_type, num_tokens)
    frame = _step_frame(config, wire_type, num_tokens, num_wants)
    answer = num_wants * _CANDIDATES
    ends = [Traffic(peers * frame, peers * answer), *[Traffic(answer, frame)] * peers]
    count = _EXCHANGES_PER_LAYER * config.num_layers
    return [one.times(count) + end for one, end in zip(sums, ends, strict=True)]


def _reduce_scatter(config: ModelConfig, world_size: int, wire_type: DType, num_tokens: int) -> list[Traffic]:
    """Bytes of one exchange: to each peer its range of the sums, and then this rank's range of the total to all."""
    peers, hidden = world_size - 1, config.hidden_size
    traffic = []
    for part in cut(hidden, BLOCK_SIZE, [Fraction(1)] * world_size):
        others = hidden - part.size
        own_total, others_total = (_activation_bytes(config, size) for size in (part.size, others))
        sent = wire_type.row_bytes(others) + peers * (own_total + _SQUARES)
        received = peers * wire_type.row_bytes(part.size) + others_total + peers * _SQUARES
        headers = 2 * peers * _HEADER
        traffic.append(Traffic(headers + num_tokens * sent, headers + num_tokens * received))
    return traffic


def _activation_bytes(config: ModelConfig, num_values: int) -> int:
    """Bytes of the inputs of the next products."""
    if config.weight_type.is_quantized:
        return num_values // BLOCK_SIZE * _ACTIVATION_BLOCK
    return num_values * 4


def _step_frame(config: ModelConfig, wire_type: DType, num_tokens: int, num_wants: int) -> int:
    """Bytes of what the root sends each worker before a step."""
    items = 1 + num_tokens // PAGE_SIZE + num_wants
    return _HEADER + _COUNTS + items * _ITEM + num_tokens * wire_type.row_bytes(config.hidden_size)
