"""How much memory one node needs, and the words for when it is not there.

Pure arithmetic: the sizes come from the core's ``NodeConfig``, what is free from ``dllama.machine``.
"""

from __future__ import annotations

from dataclasses import dataclass

from dllama.config import ModelConfig
from dllama.errors import NotEnoughMemory
from dllama.plan.partition import Shard
from dllama.plan.slices import tensor_slice

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that one node allocates, by what they hold."""

    weights: int
    kv: int
    buffers: int  # activations of a step, and the pieces of the file in flight while loading

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.buffers

    def check(self, available: int, advice: str, node: str = "") -> None:
        """Raise NotEnoughMemory, saying need, have and ``advice``, unless the plan fits ``available`` bytes.

        ``node`` is the one that needs it, named where there are several.
        """
        if self.total > available:
            raise NotEnoughMemory(
                f"{node}{' ' if node else ''}needs {mib(self.total)} MiB of memory (weights {mib(self.weights)}, "
                f"KV {mib(self.kv)}, buffers {mib(self.buffers)}), but {available // MIB} MiB are free; {advice}"
            )


def mib(num_bytes: int) -> int:
    """Whole MiB that hold ``num_bytes``."""
    return -(-num_bytes // MIB)


def idle_bytes(config: ModelConfig, shard: Shard) -> int:
    """Bytes of a shard's weights that a token does not read: experts that are not chosen for it."""
    kinds = ("gate_proj", "up_proj", "down_proj")
    layers = [index for index, layer in enumerate(config.layers) if layer.has_experts]
    names = [f"layers.{index}.experts.0.{kind}" for index in layers for kind in kinds]
    slices = {name: tensor_slice(config, shard, name) for name in names}
    each = sum(part.rows.size * config.matrix_type(name).row_bytes(part.columns.size) for name, part in slices.items())
    return each * (config.num_experts - config.num_experts_per_tok)
