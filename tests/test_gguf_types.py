"""Which number types a model gets from those that its GGUF file stores, and models in several files."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ggml_reference import decode_rows  # type: ignore[import-not-found]
from model_files import tiny_config  # type: ignore[import-not-found]
from test_gguf_quants import KINDS, random_rows  # type: ignore[import-not-found]
from tiny_families import EXPERTS  # type: ignore[import-not-found]

from dllama.config import DType, LayerSpec, ModelConfig
from dllama.errors import BadFile, UsageError
from dllama.formats.gguf import GgufModel, open_gguf
from dllama.formats.gguf_arch import ARCHS, stored_tensors
from dllama.formats.gguf_metadata import model_metadata
from dllama.formats.gguf_writer import NewTensor, write_container
from dllama.formats.quants import decode, encode
from dllama.formats.tensor import halves_from_interleaved

CONFIG = tiny_config(hidden_size=256, intermediate_size=512, head_dim=64)


def write(path: Path, types: dict[str, str], config: ModelConfig = CONFIG) -> dict[str, np.ndarray]:
    """Write a file of random blocks; ``types`` is by the end of a tensor's name, others are F32. Give all rows."""
    rows, tensors = {}, []
    for index, stored in enumerate(stored_tensors(config, ARCHS["llama"])):
        kind = next((kind for end, kind in types.items() if stored.name.endswith(f"{end}.weight")), "F32")
        if kind == "absent":
            continue
        num_rows = int(np.prod(stored.shape[:-1]))
        rows[stored.name] = raw = random_rows(kind, num_rows, stored.shape[-1], seed=index)
        tensors.append(NewTensor(stored.name, KINDS[kind], stored.shape, partial(iter, [raw])))
    write_container(path, model_metadata(config)[0], tensors)
    return rows


def opened(folder: Path, types: dict[str, str], config: ModelConfig = CONFIG) -> GgufModel:
    write(folder / "a.gguf", types, config)
    return open_gguf(folder / "a.gguf")


MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output")


def all_of(kind: str, **others: str) -> dict[str, str]:
    return dict.fromkeys(MATRICES, kind) | others


@pytest.mark.parametrize(
    ("types", "weight_type", "num_q80", "note"),
    [
        (all_of("F32"), DType.F32, 0, None),
        (all_of("F16"), DType.F16, 0, None),
        (all_of("BF16"), DType.F32, 0, None),
        (all_of("F16", attn_v="F32"), DType.F32, 0, None),
        (all_of("Q4_0"), DType.Q40, 0, None),
        (all_of("Q8_0"), DType.Q80, 0, None),
        (all_of("Q8_0", output="F16"), DType.Q80, 0, "1 F16 to Q80"),
        (all_of("Q4_0", output="Q8_0"), DType.Q40, 1, None),
        (all_of("Q4_0", output="Q6_K"), DType.Q40, 1, "1 Q6_K to Q80"),
        (all_of("Q6_K"), DType.Q80, 0, "15 Q6_K to Q80"),
        (all_of("Q4_K", attn_v="Q6_K", ffn_down="Q6_K", output="Q6_K"), DType.Q40, 5, "10 Q4_K to Q40, 5 Q6_K to Q80"),
        (all_of("Q5_K", output="BF16"), DType.Q40, 1, "1 BF16 to Q80, 14 Q5_K to Q40"),
        (all_of("Q4_1"), DType.Q40, 0, "15 Q4_1 to Q40"),
    ],
)
def test_types_of_a_model(tmp_path, types, weight_type, num_q80, note):
    with opened(tmp_path, types) as model:
        assert (model.config.weight_type, len(model.config.q80_tensors)) == (weight_type, num_q80)
        assert model.config.problem() is None
        assert model.summary().get("Requantized") == note
        for name, tensor in model.tensors.items():
            if len(tensor.shape) == 2 and name != "embed_tokens":
                assert tensor.dtype is model.config.matrix_type(name)
            else:
                assert tensor.dtype is DType.F32


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q5_0", "Q6_K"])
def test_matrices_are_decoded_and_encoded(tmp_path, kind):
    rows = write(tmp_path / "a.gguf", all_of(kind))
    with open_gguf(tmp_path / "a.gguf") as model:
        tensor = model.tensors["layers.1.down_proj"]
        wanted = encode(tensor.dtype, decode_rows(kind, rows["blk.1.ffn_down.weight"]))
        np.testing.assert_array_equal(tensor.read_rows(0, tensor.rows), wanted)
        np.testing.assert_array_equal(tensor.read_rows(17, 40), wanted[17:40])
        keys = model.tensors["layers.0.k_proj"]  # whose rows lie in pairs
        stored = decode_rows(kind, rows["blk.0.attn_k.weight"]).view(np.uint8)
        halves = halves_from_interleaved(stored, len(stored) // 2).view("<f4")
        np.testing.assert_array_equal(keys.read_rows(5, 100), encode(keys.dtype, halves)[5:100])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_1", "Q4_K", "Q6_K"])
def test_embeddings_of_any_type(tmp_path, kind):
    types = {"token_embd": kind}
    rows = write(tmp_path / "a.gguf", types)["token_embd.weight"]
    same = {"F32": DType.F32, "F16": DType.F16, "Q4_0": DType.Q40, "Q8_0": DType.Q80}
    values = decode(same[kind], rows) if kind in same else decode_rows(kind, rows)
    with open_gguf(tmp_path / "a.gguf") as model:
        np.testing.assert_array_equal(model.embedding_rows([7, 319, 0]), values[[7, 319, 0]])
        with pytest.raises(UsageError, match="token 320"):
            model.embedding_rows([320])


def test_without_a_head_the_embedding_is_it(tmp_path):
    rows = write(tmp_path / "a.gguf", all_of("Q4_0", token_embd="Q6_K", output="absent"))
    with open_gguf(tmp_path / "a.gguf") as model:
        head = model.tensors["lm_head"]
        assert model.config.q80_tensors == ("lm_head",)
        wanted = encode(DType.Q80, decode_rows("Q6_K", rows["token_embd.weight"]))
        np.testing.assert_array_equal(head.read_rows(0, head.rows), wanted)


def test_experts_of_two_types(tmp_path):
    experts = replace(CONFIG, layers=(LayerSpec(has_experts=True),) * 2, model_type="mixtral", **EXPERTS)
    config = replace(experts, moe_intermediate_size=256, intermediate_size=256)
    types = all_of("Q4_0", ffn_gate_exps="Q4_0", ffn_up_exps="Q4_K", ffn_down_exps="Q6_K", ffn_gate_inp="F16")
    rows = write(tmp_path / "a.gguf", types, config)
    with open_gguf(tmp_path / "a.gguf") as model:
        assert model.config.model_type == "mixtral"
        assert model.config.q80_tensors == tuple(f"layers.{layer}.experts.down_proj" for layer in (0, 1))
        down = model.tensors["layers.1.experts.2.down_proj"]
        values = decode_rows("Q6_K", rows["blk.1.ffn_down_exps.weight"])
        np.testing.assert_array_equal(down.read_rows(0, 256), encode(DType.Q80, values[512:768]))
        assert model.tensors["layers.0.router"].dtype is DType.F32


def split(path: Path, folder: Path, num_parts: int = 3) -> list[Path]:
    """Write the tensors of a file into several, as gguf-split does."""
    from test_gguf import parts_of  # type: ignore[import-not-found]

    metadata, tensors = parts_of(path)
    paths = []
    for number in range(num_parts):
        own = (metadata if number == 0 else {}) | {"split.no": number, "split.count": num_parts}
        paths.append(folder / f"m-{number + 1:05}-of-{num_parts:05}.gguf")
        write_container(paths[-1], own, tensors[number::num_parts])
    return paths


def test_a_model_in_parts(tmp_path):
    write(tmp_path / "a.gguf", all_of("Q4_0"))
    first, *_ = split(tmp_path / "a.gguf", tmp_path)
    with open_gguf(tmp_path / "a.gguf") as wanted, open_gguf(first) as found:
        assert found.config == wanted.config
        for name, tensor in wanted.tensors.items():
            np.testing.assert_array_equal(
                found.tensors[name].read_rows(0, tensor.rows), tensor.read_rows(0, tensor.rows)
            )
        assert found.identity() != wanted.identity()


def test_parts_that_are_not_together(tmp_path):
    write(tmp_path / "a.gguf", all_of("Q4_0"))
    first, second, third = split(tmp_path / "a.gguf", tmp_path)
    with pytest.raises(BadFile, match=r"name the first part.*-00001-of-00003"):
        open_gguf(second)
    moved = first.rename(tmp_path / "other.gguf")
    with pytest.raises(BadFile, match="ends in -00001-of-00003"):
        open_gguf(moved)
    moved.rename(first)
    raw = third.read_bytes()
    third.write_bytes(second.read_bytes())
    with pytest.raises(BadFile, match="part 2 of 3"):
        open_gguf(first)
    third.unlink()
    with pytest.raises(UsageError, match="00003-of-00003"):
        open_gguf(first)
    third.write_bytes(raw)
    open_gguf(first).close()


def test_a_file_that_was_changed_is_another_one(tmp_path):
    with opened(tmp_path, {}) as model:
        before = model.identity()
    with opened(tmp_path, {}) as model:
        assert model.identity() != before
