"""``model_type`` "phi3": Phi-3 to Phi-4-mini. Llama with fused matrices and rotation by longrope. transformers 5.4."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from dllama.config import LayerSpec, ModelConfig
from dllama.families import Checkpoint
from dllama.families._fields import Fields
from dllama.families._model import base_config, checkpoint, num_layers, refuse_common

_FUSED = {
    "q_proj": "self_attn.qkv_proj.weight",
    "k_proj": "self_attn.qkv_proj.weight",
    "v_proj": "self_attn.qkv_proj.weight",
    "gate_proj": "mlp.gate_up_proj.weight",
    "up_proj": "mlp.gate_up_proj.weight",
}


def describe(raw: Mapping[str, object], path: str | PathLike[str]) -> Checkpoint:
    """Map a Phi-3 config; a part of each head may be rotated only, and attention may have a window."""
    fields = Fields(raw, path)
    refuse_common(fields)
    layer = LayerSpec(window=fields.window("sliding_window", 0))
    layers = [layer] * num_layers(fields)
    config = base_config(fields, layers, rms_norm_eps=1e-5, may_rotate_partly=True)
    return checkpoint(fields, config, names=_FUSED, rows=_rows(config))


def _rows(config: ModelConfig) -> dict[str, tuple[int, int, int]]:
    """Give first row and number of rows of each matrix inside its fused one, and all rows of that."""
    q_size, kv_size, ffn = config.q_size, config.kv_size, config.intermediate_size
    qkv_size = q_size + 2 * kv_size
    return {
        "q_proj": (0, q_size, qkv_size),
        "k_proj": (q_size, kv_size, qkv_size),
        "v_proj": (q_size + kv_size, kv_size, qkv_size),
        "gate_proj": (0, ffn, 2 * ffn),
        "up_proj": (ffn, ffn, 2 * ffn),
    }
