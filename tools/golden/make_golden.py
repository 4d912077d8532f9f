"""Write the golden files in `tests/golden`: small random models with the logits that transformers gives for them.

    PYTHONPATH=. python tools/golden/make_golden.py [NAME...]

Needs torch and transformers; everything else about the files is in `tests/golden/README.md`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from hf_models import (  # type: ignore[import-not-found]
    Case,
    Settings,
    export,
    logits_float32,
    logits_float64,
    token_ids,
)

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "golden"
LENGTH = 200  # three full pages of 64 positions and a part of one

_SMALL: Settings = {
    "vocab_size": 92,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
# Rotated pairs of head_dim 16 have wavelengths 6, 20, 63, 199, 628, 1987, …: two stay, two blend, four are divided.
_LLAMA31_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 8.0,
    "original_max_position_embeddings": 256,
}
CASES = {
    "llama": Case("llama", 1, {**_SMALL, "num_hidden_layers": 3, "intermediate_size": 32}),
    "llama_gqa": Case(
        "llama",
        2,
        {
            **_SMALL,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
    "llama_head_dim": Case("llama", 3, {**_SMALL, "head_dim": 24, "num_key_value_heads": 2, "vocab_size": 97}),
    "llama31_rope": Case("llama", 4, {**_SMALL, "num_key_value_heads": 2, "rope_parameters": _LLAMA31_ROPE}),
    "llama_tied": Case("llama", 5, {**_SMALL, "tie_word_embeddings": True, "num_key_value_heads": 2}),
    "qwen3": Case(
        "qwen3",
        6,
        {
            **_SMALL,
            "head_dim": 32,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "qwen3_tied": Case("qwen3", 7, {**_SMALL, "head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True}),
}


def write_case(name: str, case: Case) -> None:
    """Write NAME.m, NAME.json (the config that transformers would save) and NAME.npz."""
    model = case.build()
    config = export(model, FOLDER / f"{name}.m")
    settings = {key: value for key, value in model.config.to_dict().items() if value is not None}
    (FOLDER / f"{name}.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    ids = token_ids(case.seed, LENGTH, config.vocab_size)
    exact, single = logits_float64(model, ids), logits_float32(model, ids)
    error = np.abs(single - exact).max(axis=1)
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        token_ids=ids,
        logits=exact.astype(np.float32),
        float32_error=error.astype(np.float32),
        inv_freq=model.model.rotary_emb.inv_freq.numpy(),
    )
    print(f"{name}: |logits| up to {np.abs(exact).max():.2f}, float32 differs by up to {error.max():.2e}")


def main() -> None:
    """Write the cases named on the command line, or all."""
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, numpy {np.__version__}")
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CASES:
        write_case(name, CASES[name])


if __name__ == "__main__":
    main()
