"""Running a model: requests in, tokens out. This is dllama's public Python API (``docs/python-api.md``).

The life of a request: ``Engine.add`` makes a ``Sequence``; each ``Engine.step`` asks the ``Scheduler`` for a batch of
spans, runs it on the node, and lets each sequence's ``Sampler`` choose its next token.
"""

from dllama.engine.engine import Engine
from dllama.engine.executor import EngineStopped
from dllama.engine.params import FinishReason, Output, SamplingParams
from dllama.plan.memory import MemoryPlan

__all__ = ["Engine", "EngineStopped", "FinishReason", "MemoryPlan", "Output", "SamplingParams"]
