"""Write a ``.m`` file's model as GGUF with the very same blocks, so that llama.cpp computes with the same weights.

A Q40 block is a Q4_0 block, a Q80 block a Q8_0 block, byte for byte. Only the order of q and k rows can differ. There
is no vocabulary: such a file is for token ids. Needs the package ``gguf`` (extra ``compare``).

Run from the root: ``.venv/bin/python benchmarks/gguf_copy.py IN.m OUT.gguf``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from dllama.config import DType, ModelConfig
from dllama.formats.m_file import open_m_file
from dllama.formats.quants import RawRows
from dllama.formats.tensor import Tensor, interleaved_from_halves

_TYPES = {
    DType.F32: gguf.GGMLQuantizationType.F32,
    DType.F16: gguf.GGMLQuantizationType.F16,
    DType.Q40: gguf.GGMLQuantizationType.Q4_0,
    DType.Q80: gguf.GGMLQuantizationType.Q8_0,
}
_FILE_TYPES = {
    DType.F32: gguf.LlamaFileType.ALL_F32,
    DType.F16: gguf.LlamaFileType.MOSTLY_F16,
    DType.Q40: gguf.LlamaFileType.MOSTLY_Q4_0,
    DType.Q80: gguf.LlamaFileType.MOSTLY_Q8_0,
}
_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    """Translate a tensor's name: ``layers.3.q_proj`` is ``blk.3.attn_q.weight``."""
    *layer, last = name.split(".")
    prefix = f"blk.{layer[1]}." if layer else ""
    return f"{prefix}{_NAMES[last]}.weight"


def write_gguf(source: Path, target: Path) -> None:
    """Write the copy; ``target`` appears when it is complete. Holds one tensor at a time in memory.

    Raises:
        DllamaError: ``source`` is no model that dllama runs.
    """
    unfinished = target.with_name(f"{target.name}.new")
    with open_m_file(source) as file:
        writer = gguf.GGUFWriter(unfinished, file.config.model_type)
        _add_facts(writer, file.config)
        for tensor in file.tensors.values():
            shape, dtype = tensor.shape, np.dtype(np.float32)
            writer.add_tensor_info(gguf_name(tensor.name), shape, dtype, tensor.nbytes, _TYPES[tensor.dtype])
        factors = _rope_factors(file.config)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in file.tensors.values():
            writer.write_tensor_data(stored_rows(tensor, file.config))
        if factors is not None:
            writer.write_tensor_data(factors)
        writer.close()
    unfinished.rename(target)


def stored_rows(tensor: Tensor, config: ModelConfig) -> RawRows:
    """Give a tensor's rows, uint8 ``[rows, row_bytes]``, in the order that llama.cpp has them.

    It rotates neighbours in Llama models and halves, as Hugging Face does, in Qwen3's.
    """
    rows = tensor.read_rows(0, tensor.rows)
    if config.model_type == "llama" and tensor.name.endswith(("q_proj", "k_proj")):
        return interleaved_from_halves(rows, config.head_dim)
    return rows


def _rope_factors(config: ModelConfig) -> npt.NDArray[np.float32] | None:
    """Give what llama.cpp divides the angles by, ``[head_dim / 2]``; None if by nothing."""
    if config.rope_scaling is None:
        return None
    unscaled = replace(config, rope_scaling=None).rope_frequencies()
    factors: npt.NDArray[np.float32] = unscaled / config.rope_frequencies()
    return factors


def _add_facts(writer: Any, config: ModelConfig) -> None:
    writer.add_file_type(_FILE_TYPES[config.weight_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="IN.m")
    parser.add_argument("target", type=Path, metavar="OUT.gguf")
    args = parser.parse_args()
    write_gguf(args.source, args.target)


if __name__ == "__main__":
    main()
