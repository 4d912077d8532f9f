"""Who owns what and how much memory it takes: pure arithmetic, no file and no socket."""

from dllama.plan.memory import MemoryPlan, idle_bytes
from dllama.plan.partition import Plan, Range, Shard, Stage, kv_heads_per_unit, make_plan, max_world_size, node_name
from dllama.plan.slices import Axis, TensorSlice, tensor_slice
from dllama.plan.wire import Exchange, Traffic, exchanges_of, step_traffic

__all__ = [
    "Axis",
    "Exchange",
    "MemoryPlan",
    "Plan",
    "Range",
    "Shard",
    "Stage",
    "TensorSlice",
    "Traffic",
    "exchanges_of",
    "idle_bytes",
    "kv_heads_per_unit",
    "make_plan",
    "max_world_size",
    "node_name",
    "step_traffic",
    "tensor_slice",
]
