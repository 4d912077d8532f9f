"""The models of `tests/golden/families`: what each is, and what it shows. Every feature must show in the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]

_SMALL: Settings = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
# Standard deviation of each matrix, times 1 / sqrt(its inputs): attention is peaked, routers decide clearly.
_GAINS = {
    "q_proj": 1.6,
    "k_proj": 1.6,
    "v_proj": 1.0,
    "qkv_proj": 1.4,
    "o_proj": 0.3,
    "gate_proj": 1.5,
    "up_proj": 1.5,
    "gate_up_proj": 1.5,
    "down_proj": 0.3,
    "gate": 3.0,
    "w1": 1.5,
    "w3": 1.5,
    "w2": 0.3,
    "lm_head": 2.0,
}
# q/k norm undoes the scale of q and k, so a small one costs nothing and lets rms_norm_eps show.
_NORMED_QK = {"q_proj": 0.05, "k_proj": 0.05}


@dataclass(frozen=True)
class Case:
    """One model: its family, its seed, the settings of its config class, and how its weights are drawn.

    Attributes:
        embedding: Standard deviation of embeddings.
        gains: Those that differ from ``_GAINS``.
        norm: Mean of norm weights, as stored.
        max_seq_len: The context to load it with; None: its own.
    """

    model_type: str
    seed: int
    settings: Settings
    embedding: float = 0.02
    gains: Mapping[str, float] = field(default_factory=dict)
    norm: float = 1.0
    max_seq_len: int | None = None

    def mean_and_deviation(self, tensor: str, shape: tuple[int, ...]) -> tuple[float, float]:
        """Say how a tensor of the checkpoint is drawn."""
        *_, kind, suffix = tensor.split(".")
        if suffix == "bias":
            return 0.0, 0.5
        if len(shape) == 1:
            return self.norm + (0.5 if kind in ("q_norm", "k_norm") else 0.0), 0.3
        if kind == "embed_tokens":
            return 0.0, self.embedding
        return 0.0, float({**_GAINS, **self.gains}[kind] / shape[1] ** 0.5)


def _llama(seed: int, **rope: Any) -> Case:
    return Case("llama", seed, {**_SMALL, "rope_parameters": {"rope_theta": 10000.0, **rope}})


def _phi3(seed: int, original: int, max_seq_len: int | None) -> Case:
    """Six rotated pairs of eight; the context that is in use picks the list of factors."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": original,
        "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5],
        "long_factor": [1.1, 1.5, 2.5, 4.0, 6.0, 8.0],
    }
    settings = {**_SMALL, "rope_parameters": rope, "original_max_position_embeddings": original}
    return Case("phi3", seed, settings, max_seq_len=max_seq_len)


_GEMMA: Settings = {
    **_SMALL,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 40,
    "tie_word_embeddings": True,
}
_CAPS: Settings = {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 3.0}
_MOE: Settings = {
    **_SMALL,
    "head_dim": 16,
    "moe_intermediate_size": 96,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "router_aux_loss_coef": 0.0,
}
CASES = {
    "llama_linear": _llama(21, rope_type="linear", factor=4.0),
    # Wavelengths of the eight pairs: 6, 20, 63, 199, 628, 1987, …; the original context of 128 has them in all states.
    "llama_yarn": _llama(
        22,
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=128,
        beta_fast=8.0,
        beta_slow=0.5,
    ),
    "llama_yarn_mscale": _llama(
        23,
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=128,
        beta_fast=8.0,
        beta_slow=0.5,
        mscale=1.0,
        mscale_all_dim=0.5,
        truncate=False,
    ),
    "mistral": Case("mistral", 24, {**_SMALL, "sliding_window": 40}),
    "mixtral": Case(
        "mixtral", 25, {**_SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    ),
    "qwen2": Case("qwen2", 26, _SMALL),
    "qwen2_window": Case(
        "qwen2",
        27,
        {
            **_SMALL,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 40,
            "max_window_layers": 1,
        },
        embedding=0.2,
    ),
    "qwen3": Case("qwen3", 28, {**_SMALL, "head_dim": 32}, gains=_NORMED_QK),
    "qwen3_moe": Case("qwen3_moe", 38, {**_MOE, "norm_topk_prob": True}, gains=_NORMED_QK),
    "qwen3_moe_unscaled": Case(
        "qwen3_moe",
        30,
        {**_MOE, "num_hidden_layers": 3, "mlp_only_layers": [1], "norm_topk_prob": False},
        gains=_NORMED_QK,
    ),
    "gemma2": Case("gemma2", 31, {**_GEMMA, **_CAPS}, embedding=0.2, norm=0.0),
    "gemma2_scalar": Case("gemma2", 39, {**_GEMMA, **_CAPS, "query_pre_attn_scalar": 24}, embedding=0.2, norm=0.0),
    "gemma3_text": Case(
        "gemma3_text",
        32,
        {
            **_GEMMA,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            },
        },
        embedding=0.2,
        norm=0.0,
        gains=_NORMED_QK,
    ),
    "phi3_short": _phi3(33, original=256, max_seq_len=256),
    "phi3_long": _phi3(34, original=64, max_seq_len=None),
    "phi3_window": Case("phi3", 35, {**_SMALL, "sliding_window": 40}),
    "olmo2": Case("olmo2", 36, _SMALL, embedding=0.5, gains=_NORMED_QK),
    "granite": Case(
        "granite",
        37,
        {
            **_SMALL,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.6,
            "logits_scaling": 1.7,
        },
    ),
}
