"""A model written as GGUF and read again is the same model; files that do not hold what they must are refused."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_model import MemoryModel  # type: ignore[import-not-found]
from model_files import tiny_config  # type: ignore[import-not-found]
from tiny_families import LONGROPE, YARN, family_configs  # type: ignore[import-not-found]

from dllama.config import DType, LayerSpec, ModelConfig
from dllama.errors import BadFile, DllamaError, UnsupportedModel, UsageError
from dllama.formats.gguf import open_gguf
from dllama.formats.gguf_container import read_container
from dllama.formats.gguf_export import export_gguf
from dllama.formats.gguf_types import GGML_TYPES
from dllama.formats.gguf_writer import NewTensor, write_container
from dllama.formats.quants import encode

CONFIGS = family_configs()
KINDS = {kind.name: kind for kind in GGML_TYPES.values()}


def exported(folder: Path, config: ModelConfig) -> tuple[MemoryModel, Path]:
    """Write a random model."""
    model = MemoryModel(config)
    export_gguf(model, folder / "a.gguf")
    return model, folder / "a.gguf"


def assert_same_config(found: ModelConfig, wanted: ModelConfig) -> None:
    if wanted.rope_scaling and wanted.rope_scaling.kind == "llama3":  # which comes back as factors
        np.testing.assert_allclose(found.rope_frequencies(), wanted.rope_frequencies(), rtol=1e-6)
        found = replace(found, rope_scaling=wanted.rope_scaling)
    for field in fields(ModelConfig):
        assert getattr(found, field.name) == pytest.approx(getattr(wanted, field.name)) or getattr(
            found, field.name
        ) == getattr(wanted, field.name), field.name


@pytest.mark.verifies("A model of any number type that is exported and read back is the same model.", "gguf", "export")
@pytest.mark.parametrize("weight_type", DType)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_comes_back(tmp_path, name, weight_type):
    wanted, copy = exported(tmp_path, family_configs(weight_type)[name])
    config = wanted.config
    if name == "gemma2" and config.weight_type is DType.Q40:  # the head is the embedding, as it was
        config = replace(config, q80_tensors=("lm_head",))
    with open_gguf(copy) as found:
        assert_same_config(found.config, config)
        assert found.tensors.keys() == wanted.tensors.keys()
        for tensor in wanted.tensors.values():
            if name == "gemma2" and tensor.name in ("lm_head", "embed_tokens"):  # one tensor, see below
                continue
            ours = found.tensors[tensor.name]
            assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape)
            np.testing.assert_array_equal(ours.read_rows(0, ours.rows), tensor.read_rows(0, tensor.rows))


def test_rows_are_read_from_anywhere(tmp_path):
    wanted, copy = exported(tmp_path, tiny_config())
    with open_gguf(copy) as found:
        for begin, end in ((0, 1), (3, 21), (16, 32), (63, 64), (5, 5)):
            rows = found.tensors["layers.1.q_proj"].read_rows(begin, end)
            np.testing.assert_array_equal(rows, wanted.tensors["layers.1.q_proj"].read_rows(begin, end))


def test_embeddings_come_by_token(tmp_path):
    wanted, copy = exported(tmp_path, CONFIGS["llama"])
    with open_gguf(copy) as found:
        np.testing.assert_array_equal(found.embedding_rows([5, 0, 5]), wanted.embedding_rows([5, 0, 5]))


@pytest.mark.parametrize(("weight_type", "embedding"), [(DType.F32, "F32"), (DType.F16, "F16"), (DType.Q40, "F32")])
def test_a_head_is_left_out_where_it_is_the_embedding(tmp_path, weight_type, embedding):
    """The one tensor has the type of the other matrices if that is one of floats, for then all of the model has it."""
    model, copy = exported(tmp_path, family_configs(weight_type)["gemma2"])
    tensors = read_container(copy).tensors
    assert "output.weight" not in tensors
    assert tensors["token_embd.weight"].type.name == embedding
    kept = model.tensors["lm_head" if weight_type is DType.F16 else "embed_tokens"].read_floats()
    with open_gguf(copy) as found:
        np.testing.assert_array_equal(found.tensors["embed_tokens"].read_floats(), kept)
        head = found.tensors["lm_head"]
        np.testing.assert_array_equal(head.read_rows(0, 320), encode(head.dtype, kept))


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("llama", {"logits_softcap": 30.0}, "final_logit_softcapping"),
        ("llama", {"attention_multiplier": 0.3}, "attention_multiplier"),
        ("llama", {"model_type": "falcon"}, "falcon"),
        ("gemma2", {"attention_softcap": 0.0}, "attention_softcap"),
        ("gemma2", {"attention_multiplier": 0.3}, "attention_multiplier"),
        ("gemma3_text", {"layers": (LayerSpec(),) * 7}, "layers.0"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3", {"rope_scaling": replace(YARN, is_truncated=False)}, "rope_scaling"),
        ("olmo2", {"rope_scaling": replace(LONGROPE, short_factors=(1.0,) * 8, long_factors=(2.0,) * 8)}, "rope"),
    ],
)
def test_what_gguf_cannot_say_is_not_written(tmp_path, name, changes, field):
    model = MemoryModel(replace(CONFIGS[name], **changes))
    with pytest.raises(UsageError, match=field):
        export_gguf(model, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


# What follows changes files that are sound.


def parts_of(path: Path) -> tuple[dict[str, Any], list[NewTensor]]:
    """Read a file as what ``write_container`` takes."""
    found, raw = read_container(path), np.fromfile(path, np.uint8)

    def tensor(info):
        data = raw[info.offset : info.offset + info.nbytes]
        return NewTensor(info.name, info.type, info.shape, lambda: [data])

    return dict(found.metadata), [tensor(info) for info in found.tensors.values()]


def rewritten(path: Path, change) -> Path:
    metadata, tensors = parts_of(path)
    tensors = change(metadata, tensors) or tensors
    write_container(path, metadata, tensors)
    return path


def assert_refused(path: Path, kind: type[DllamaError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        open_gguf(path)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key", "value", "kind", "words"),
    [
        ("llama", "general.architecture", None, BadFile, ["general.architecture"]),
        ("llama", "general.architecture", 3, BadFile, ["general.architecture"]),
        ("llama", "general.architecture", "mamba", UnsupportedModel, ["'mamba'", "qwen3moe"]),
        ("llama", "general.architecture", "clip", UnsupportedModel, ["'clip'"]),
        ("llama", "general.type", "adapter", UnsupportedModel, ["'adapter'"]),
        ("llama", "llama.embedding_length", None, BadFile, ["llama.embedding_length", "no such key"]),
        ("llama", "llama.embedding_length", "64", BadFile, ["a whole number", "'64'"]),
        ("llama", "llama.embedding_length", 0, BadFile, ["hidden_size"]),
        ("llama", "llama.embedding_length", 2**32 - 1, BadFile, ["hidden_size"]),
        ("llama", "llama.embedding_length", 96, BadFile, ["shape"]),
        ("llama", "llama.block_count", 2**32 - 1, BadFile, ["num_layers"]),
        ("llama", "llama.block_count", 3, BadFile, ["blk.2.", "none of this name"]),
        ("llama", "llama.block_count", 1, UnsupportedModel, ["blk.1."]),
        ("llama", "llama.attention.head_count", 0, BadFile, ["num_heads"]),
        ("llama", "llama.attention.head_count", np.array([4, 4], np.int32), None, []),
        ("llama", "llama.attention.head_count", np.array([4, 2], np.int32), BadFile, ["the same for all layers"]),
        ("llama", "llama.attention.head_count_kv", 3, BadFile, ["num_heads"]),
        ("llama", "llama.attention.value_length", 8, BadFile, ["value_length"]),
        ("llama", "llama.attention.layer_norm_rms_epsilon", None, BadFile, ["layer_norm_rms_epsilon"]),
        ("llama", "llama.attention.layer_norm_rms_epsilon", float("nan"), BadFile, ["rms_norm_eps"]),
        ("llama", "llama.rope.freq_base", float("inf"), BadFile, ["rope_theta"]),
        ("llama", "llama.rope.scaling.type", "dynamic", BadFile, ["rope.scaling.type", "dynamic"]),
        ("llama", "llama.rope.scaling.type", "longrope", BadFile, ["rope.scaling.type"]),
        ("llama", "llama.rope.scaling.factor", -2.0, BadFile, ["rope_scaling"]),
        ("llama", "llama.expert_count", 8, BadFile, ["num_experts_per_tok"]),
        ("llama", "llama.logit_scale", 2.0, UnsupportedModel, ["llama.logit_scale"]),
        ("llama", "llama.attention.clamp_kqv", 0.0, None, []),
        ("llama", "llama.attention.clamp_kqv", 8.0, UnsupportedModel, ["clamp_kqv"]),
        ("llama", "llama.attention.clamp_kqv", np.zeros(2, np.float32), UnsupportedModel, ["clamp_kqv"]),
        ("llama", "general.type", np.zeros(2, np.float32), UnsupportedModel, ["general.type"]),
        ("llama", "general.architecture", np.zeros(2, np.float32), BadFile, ["general.architecture"]),
        ("llama", "llama.rope.scaling.type", np.zeros(2, np.float32), BadFile, ["a string"]),
        ("llama", "llama.rope.scaling.finetuned", False, None, []),
        ("llama", "split.count", np.zeros(2, np.float32), BadFile, ["split.count"]),
        ("llama", "llama.attention.causal", False, UnsupportedModel, ["causal"]),
        ("llama", "llama.expert_gating_func", 2, UnsupportedModel, ["expert_gating_func"]),
        ("qwen3", "qwen3.pooling_type", 4, UnsupportedModel, ["pooling_type"]),
        ("qwen2, yarn", "qwen2.rope.scaling.factor", 0.0, None, []),
        ("qwen2, yarn", "qwen2.rope.scaling.factor", -1.0, BadFile, ["rope.scaling.factor"]),
        ("qwen2, yarn", "qwen2.rope.scaling.yarn_log_multiplier", 0.1, UnsupportedModel, ["yarn_log_multiplier"]),
        ("granite", "granite.logit_scale", 0.0, BadFile, ["logit"]),
        ("granite", "granite.rope.scaling.finetuned", False, UnsupportedModel, ["finetuned"]),
        ("qwen3_moe", "qwen3moe.expert_count", 1 << 30, BadFile, ["num_experts"]),
        ("qwen3_moe", "qwen3moe.expert_count", 5, BadFile, ["shape"]),
        ("qwen3_moe", "qwen3moe.expert_shared_count", 1, UnsupportedModel, ["expert_shared_count"]),
        ("gemma2", "gemma2.attention.sliding_window", -5, BadFile, ["window"]),
        ("gemma2", "gemma2.attention.sliding_window_pattern", 4, None, []),
        ("gemma2", "gemma2.attention.sliding_window_pattern", np.ones(4, np.int8), None, []),
        ("gemma2", "gemma2.attention.sliding_window_pattern", np.array([1, 0, 1, 0]), BadFile, ["the same for all"]),
    ],
)
def test_metadata_is_checked(tmp_path, name, key, value, kind, words):
    _, path = exported(tmp_path, CONFIGS[name])

    def change(metadata, _tensors):
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = value

    rewritten(path, change)
    if kind is None:
        open_gguf(path).close()
    else:
        assert_refused(path, kind, *words)


def test_a_window_has_the_period_that_is_said(tmp_path):
    _, path = exported(tmp_path, CONFIGS["gemma2"])
    rewritten(path, lambda metadata, _tensors: metadata.update({"gemma2.attention.sliding_window_pattern": 3}))
    with open_gguf(path) as model:
        assert [layer.window for layer in model.config.layers] == [16, 16, 0, 16]


def renamed(old: str, new: str):
    def change(_metadata, tensors):
        return [replace(tensor, name=new) if tensor.name == old else tensor for tensor in tensors]

    return change


def retyped(name: str, kind: str):
    def change(_metadata, tensors):
        return [filled(tensor, kind) if tensor.name == name else tensor for tensor in tensors]

    return change


def filled(tensor: NewTensor, kind: str) -> NewTensor:
    new = replace(tensor, type=KINDS[kind])
    return replace(new, rows=lambda: [np.zeros(new.nbytes, np.uint8)])


@pytest.mark.parametrize(
    ("name", "change", "kind", "words"),
    [
        ("llama", renamed("token_embd.weight", "x"), BadFile, ["token_embd.weight"]),
        ("llama", renamed("blk.1.attn_q.weight", "blk.1.attn_q.bias"), BadFile, ["blk.1.attn_q.weight"]),
        ("llama", renamed("output.weight", "blk.0.attn_q.bias"), UnsupportedModel, ["blk.0.attn_q.bias"]),
        ("llama", renamed("output.weight", "rope_freqs.weight"), BadFile, ["rope_freqs.weight", "8 values"]),
        ("llama", renamed("output.weight", "rope_factors_long.weight"), BadFile, ["rope_factors"]),
        ("qwen2", renamed("output.weight", "rope_freqs.weight"), UnsupportedModel, ["rope_freqs.weight"]),
        ("qwen2", renamed("blk.0.attn_q.bias", "x"), BadFile, ["blk.0.attn_q.bias"]),
        ("gemma2", renamed("blk.3.post_ffw_norm.weight", "x"), BadFile, ["blk.3.post_ffw_norm.weight"]),
        ("llama", retyped("output.weight", "IQ4_NL"), UnsupportedModel, ["output.weight", "IQ4_NL", "Q4_K"]),
        ("llama", retyped("output_norm.weight", "I32"), UnsupportedModel, ["output_norm.weight", "I32"]),
        ("phi3", retyped("rope_factors_long.weight", "F64"), UnsupportedModel, ["rope_factors_long", "F64"]),
        ("phi3", retyped("rope_factors_long.weight", "F32"), BadFile, ["rope_scaling"]),
    ],
)
def test_tensors_are_checked(tmp_path, name, change, kind, words):
    _, path = exported(tmp_path, CONFIGS[name])
    assert_refused(rewritten(path, change), kind, *words)


def test_old_buffers_are_passed_over(tmp_path):
    _, path = exported(tmp_path, CONFIGS["llama"])
    rewritten(path, renamed("output.weight", "blk.0.attn_rot_embd.weight"))
    open_gguf(path).close()


def test_numbers_that_are_none_are_told_when_they_are_read(tmp_path):
    _, path = exported(tmp_path, CONFIGS["llama"])

    def change(_metadata, tensors):
        nan = np.full(320 * 64, 0x7FC0, np.uint16).view(np.uint8)
        bad = NewTensor("output.weight", KINDS["BF16"], (320, 64), lambda: [nan])
        return [bad if tensor.name == bad.name else tensor for tensor in tensors]

    with open_gguf(rewritten(path, change)) as model, pytest.raises(BadFile, match=r"tensor lm_head.*magnitude nan"):
        model.tensors["lm_head"].read_rows(0, 320)
