"""Who owns what and how much memory it takes: pure arithmetic, no file and no socket."""

from dllama.plan.memory import MemoryPlan
from dllama.plan.partition import Plan, Range, Shard, Stage, kv_heads_per_unit, make_plan, max_world_size
from dllama.plan.slices import Axis, TensorSlice, tensor_slice

__all__ = [
    "Axis",
    "MemoryPlan",
    "Plan",
    "Range",
    "Shard",
    "Stage",
    "TensorSlice",
    "kv_heads_per_unit",
    "make_plan",
    "max_world_size",
    "tensor_slice",
]
