"""Small random models of Hugging Face transformers, their logits, and their weights as `.m` files.

Used by `make_golden.py` and by `tests/test_live_transformers.py`. The weights are scaled so that every feature shows in
the logits: attention is peaked, norm weights differ from 1, and the mean squares that RMSNorm sees are small enough for
`rms_norm_eps` to matter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from dllama.config import ModelConfig
from dllama.families import describe
from dllama.formats.m_file import write_m_file

Settings = Mapping[str, Any]

_CLASSES: dict[str, tuple[Callable[..., Any], Callable[..., PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
# Standard deviation of each matrix, times 1 / sqrt(its inputs).
_GAINS = {
    "q_proj": 1.6,
    "k_proj": 1.6,
    "v_proj": 1.0,
    "o_proj": 0.3,
    "gate_proj": 1.5,
    "up_proj": 1.5,
    "down_proj": 0.3,
    "lm_head": 2.0,
}
# q/k norm undoes the scale of q and k, so a small one costs nothing and lets rms_norm_eps show.
_NORMED_QK_GAIN = 0.05


@dataclass(frozen=True)
class Case:
    """One model: its family, its seed, and the settings that its config class gets."""

    model_type: str
    seed: int
    settings: Settings = field(default_factory=dict)

    def build(self) -> PreTrainedModel:
        """Make the model in float32, its weights drawn from the seed alone."""
        config_class, model_class = _CLASSES[self.model_type]
        model = model_class(config_class(**self.settings, attn_implementation="eager")).eval()
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                _draw(model, name, weight, generator)
        return model


def _draw(model: PreTrainedModel, name: str, weight: torch.Tensor, generator: torch.Generator) -> None:
    weight.normal_(generator=generator)
    if weight.dim() == 1:
        is_head_norm = name.endswith(("q_norm.weight", "k_norm.weight"))
        weight.mul_(0.3).add_(1.5 if is_head_norm else 1.0)
        return
    weight.mul_(_std(model, name.split(".")[-2], weight.shape[1]))


def _std(model: PreTrainedModel, kind: str, inputs: int) -> float:
    if kind == "embed_tokens":
        return 0.2 if model.config.tie_word_embeddings else 0.02
    gain = _GAINS[kind]
    if kind in ("q_proj", "k_proj") and model.config.model_type == "qwen3":
        gain = _NORMED_QK_GAIN
    return gain / math.sqrt(inputs)


def token_ids(seed: int, length: int, vocab_size: int) -> npt.NDArray[np.int32]:
    """Draw a sequence whose second half repeats some of the first, so that attention finds earlier equals."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocab_size, length, dtype=np.int32)
    ids[length // 2 : length // 2 + length // 4] = ids[: length // 4]
    return ids


def logits_float32(model: PreTrainedModel, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Logits of all positions as transformers computes them."""
    with torch.no_grad():
        return _logits(model, ids)


def logits_float64(model: PreTrainedModel, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Logits of all positions by transformers' code with every number in float64, rotary frequencies included."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad(), _AllFloat64():
        rotary = exact.model.rotary_emb
        exact.model.rotary_emb = type(rotary)(exact.config)
        return _logits(exact, ids)


def _logits(model: PreTrainedModel, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    logits: npt.NDArray[np.float64] = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].double().numpy()
    return logits


class _AllFloat64(TorchFunctionMode):  # type: ignore[misc]
    """Turns each request for float32 into one for float64: norms, softmax and rotary angles ask for it by name."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def export(model: PreTrainedModel, path: Path) -> ModelConfig:
    """Write the model as an F32 `.m` file, through the mapping that `dllama.families` gives."""
    checkpoint = describe(model.config.to_dict(), "config.json")
    state = model.state_dict()
    tensors = {ours: state[part.name].numpy() for ours, part in checkpoint.tensors.items()}
    write_m_file(path, checkpoint.config, tensors)
    return checkpoint.config
