"""How many bytes the nodes send each other in a step: pure arithmetic over the frames that the core exchanges.

Knows the sizes of frames (``csrc/net/frame.h``, ``csrc/model/batch.cpp``), not what is in them. Heartbeats and the
headers of TCP and IP come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dllama.config import BLOCK_SIZE, DType, ModelConfig, QkNorm

PAGE_SIZE = 64  # positions in one KV page, as in the core
_HEADER = 32  # bytes before every message
_COUNTS, _ITEM = 28, 12  # of a step frame: how many of each kind and which exchange; each span, page change and want
_QUERY = 16  # what a step frame asks of a row that is sampled
_CANDIDATES = 64  # a worker's answer, its header included, where one candidate is asked for; each more has 8
_SQUARES = 4  # the sum of squares of a node's range of one token, F32
_ACTIVATION_BLOCK = BLOCK_SIZE + 4  # what quantized products read: 8-bit values and a scale in F32
_EXCHANGES_PER_LAYER = 2  # behind o_proj and behind down_proj
_HEAD_SQUARES = 8  # of a token, before attention where all heads are normed together: sums over queries and keys, F32
_PIECE_TOKENS, _MOST_PIECES = 64, 4  # a long step's sums travel in pieces, each a message


class Exchange(Enum):
    """How partial sums are added up."""

    DIRECT = "direct"  # every rank sends all of its sums to every other rank
    REDUCE_SCATTER = "reduce-scatter"  # every rank adds up a range of the hidden size, and gives it to all


def exchanges_of(config: ModelConfig) -> list[Exchange]:
    """List the ways to add up the sums of a model: where they are normed, every rank needs them whole."""
    return [Exchange.DIRECT] if config.has_output_norms else [*Exchange]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one node sends and receives."""

    sent: int
    received: int

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.sent + other.sent, self.received + other.received)


def step_traffic(
    config: ModelConfig, world_size: int, wire_type: DType, exchange: Exchange, num_tokens: int, num_wants: int
) -> list[Traffic]:
    """Count the bytes of one step of one sequence.

    Args:
        config: A valid model config.
        world_size: Number of nodes.
        wire_type: Number type of partial sums and embedded rows between nodes.
        exchange: How partial sums are added up, one of ``exchanges_of(config)``.
        num_tokens: Tokens in the step; each whole page of them brings a page change.
        num_wants: For how many of them the next token is sampled.

    Returns:
        The traffic of each rank.
    """
    peers, count = world_size - 1, _EXCHANGES_PER_LAYER * config.num_layers
    headers = peers * _HEADER * min(max(num_tokens // _PIECE_TOKENS, 1), _MOST_PIECES)
    if exchange is Exchange.DIRECT:
        size = count * (headers + peers * num_tokens * wire_type.row_bytes(config.hidden_size))
        sums = [Traffic(size, size)] * world_size
    else:
        headers = (2 * count - 1) * headers + (peers * _HEADER if num_wants else 0)
        # What the last sums give is wanted only of the tokens that are sampled.
        sums = _reduce_scatter(config, world_size, wire_type, count * num_tokens, (count - 1) * num_tokens + num_wants)
        sums = [each + Traffic(headers, headers) for each in sums]
    num_norms = sum(layer.qk_norm is QkNorm.ALL for layer in config.layers)
    squares = num_norms * peers * (_HEADER + num_tokens * _HEAD_SQUARES)
    frame = _step_frame(config, wire_type, num_tokens, num_wants)
    answer = num_wants * _CANDIDATES
    ends = [Traffic(peers * frame, peers * answer), *[Traffic(answer, frame)] * peers]
    return [one + end + Traffic(squares, squares) for one, end in zip(sums, ends, strict=True)]


def _reduce_scatter(
    config: ModelConfig, world_size: int, wire_type: DType, num_sums: int, num_totals: int
) -> list[Traffic]:
    """Bytes without headers: of sums to each peer its range, and of totals this rank's range to all."""
    peers, blocks = world_size - 1, config.hidden_size // BLOCK_SIZE
    traffic = []
    for rank in range(world_size):
        own = (blocks * (rank + 1) // world_size - blocks * rank // world_size) * BLOCK_SIZE
        others = config.hidden_size - own
        sent = peers * (_activation_bytes(config, own) + _SQUARES)
        received = _activation_bytes(config, others) + peers * _SQUARES
        sums = Traffic(wire_type.row_bytes(others) * num_sums, peers * wire_type.row_bytes(own) * num_sums)
        traffic.append(sums + Traffic(sent * num_totals, received * num_totals))
    return traffic


def _activation_bytes(config: ModelConfig, num_values: int) -> int:
    """Bytes of the inputs of the next products."""
    if config.weight_type.is_quantized:
        return num_values // BLOCK_SIZE * _ACTIVATION_BLOCK
    return num_values * 4


def _step_frame(config: ModelConfig, wire_type: DType, num_tokens: int, num_wants: int) -> int:
    """Bytes of what the root sends each worker before a step."""
    items = 1 + num_tokens // PAGE_SIZE + num_wants
    return _HEADER + _COUNTS + items * _ITEM + num_wants * _QUERY + num_tokens * wire_type.row_bytes(config.hidden_size)
