"""Everything that reads what strangers wrote, and small sound files of each kind, for ``test_fuzz_readers.py``.

``fuzz_readers.py NAME FIRST COUNT PROGRESS`` reads so many changed files in the folder where it is started.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
from checkpoints import bf16, program_of, write_pth  # type: ignore[import-not-found]
from cluster_world import setup_of  # type: ignore[import-not-found]
from family_models import FOLDER as GOLDEN  # type: ignore[import-not-found]
from fuzz_tokenizers import (  # type: ignore[import-not-found]
    beside_a_tokenizer,
    gguf_vocabulary,
    sentencepiece,
    t_file,
    tiktoken,
    tokenizer_json,
)
from fuzzing import Target, changed_bytes, changed_json, run  # type: ignore[import-not-found]
from gguf_files import (  # type: ignore[import-not-found]
    F32,
    STRING,
    RawFile,
    RawTensor,
    array_pair,
    number_pair,
    string,
    text_pair,
)
from hf_folders import checkpoint, safetensors_bytes, stored, write_folder  # type: ignore[import-not-found]
from memory_model import MemoryModel  # type: ignore[import-not-found]
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]
from tiny_families import family_configs  # type: ignore[import-not-found]

from dllama.cluster import protocol
from dllama.cluster.addresses import Address
from dllama.cluster.protocol import Challenge, Facts, Failed, Hello, Missing, Pulse, Refused, Setup
from dllama.cluster.session import check_setup
from dllama.config import DType
from dllama.errors import DllamaError
from dllama.families import describe
from dllama.formats.gguf import open_gguf
from dllama.formats.gguf_container import StringArray, read_container
from dllama.formats.gguf_export import export_gguf
from dllama.formats.gguf_writer import Value
from dllama.formats.hf_folder import open_hf_folder
from dllama.formats.m_config import encode_config
from dllama.formats.m_file import open_m_file
from dllama.formats.meta_folder import open_meta_folder
from dllama.formats.pth_file import open_pth
from dllama.formats.safetensors_file import open_safetensors
from dllama.formats.session_file import read_session, read_token_ids
from dllama.formats.torch_pickle import read_tensors

# The smallest models there can be.
SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
SMALL |= {"head_dim": 16, "vocab_size": 4}


def m_file() -> Target:
    kinds: list[dict[str, Any]] = [{}, {"model_type": "qwen3"}]
    kinds.append({"rope_scaling": family_configs()["llama, llama3"].rope_scaling})
    sound = [_written_m(tiny_config(**{**kind, **SMALL})) for kind in kinds]
    return Target(sound, lambda raw, rng: changed_bytes(raw, rng, struct.unpack_from("<i", raw, 4)[0]), _read_m)


def m_file_of_ours() -> Target:
    """Files whose header is JSON; the number at byte 28 is its size."""
    names = ("gemma2", "mixtral", "phi3", "olmo2", "qwen2, yarn")
    configs = {name: family_configs(DType.Q40)[name] for name in names}
    sizes = {name: len(encode_config(config)) for name, config in configs.items()}
    sound = [_written_m(config) for config in configs.values()]

    def change(raw: bytes, rng: Random) -> bytes:
        end = 32 + struct.unpack_from("<i", raw, 28)[0]
        if rng.random() < 0.5:
            return changed_bytes(raw, rng, end)
        config = changed_json(raw[32:end], rng)
        return raw[:28] + struct.pack("<i", len(config)) + config + raw[end:]

    assert [struct.unpack_from("<i", raw, 28)[0] for raw in sound] == list(sizes.values())
    return Target(sound, change, _read_m)


def _written_m(config: Any) -> bytes:
    write_tiny_model(Path("a.m"), config)
    return Path("a.m").read_bytes()


def _read_m(raw: bytes) -> None:
    Path("a.m").write_bytes(raw)
    with open_m_file("a.m") as model:
        assert model.file_size == len(raw)
        assert not model.config.problem()
        _use_model(model)


def _use_model(model: Any) -> None:
    model.summary()
    model.embedding_rows([0])
    last = model.tensors["lm_head"]
    last.read_rows(last.rows - 1, last.rows)


def safetensors() -> Target:
    arrays = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    arrays["b"] = {"dtype": "BF16", "shape": [8], "data_offsets": [16, 32]}
    sound = [safetensors_bytes({"__metadata__": {"format": "pt"}, **arrays}, bytes(32)), safetensors_bytes({})]

    def change(raw: bytes, rng: Random) -> bytes:
        end = 8 + struct.unpack_from("<Q", raw)[0]
        if rng.random() < 0.5:
            return changed_bytes(raw, rng, end)
        return bytes(safetensors_bytes(changed_json(raw[8:end], rng), raw[end:]))

    def read(raw: bytes) -> None:
        Path("a.safetensors").write_bytes(raw)
        file, arrays = open_safetensors("a.safetensors")
        file.close()
        assert all(array.offset <= len(raw) for array in arrays.values())

    return Target(sound, change, read)


def index() -> Target:
    config, weights = checkpoint()
    arrays = {name: stored(values, "BF16") for name, values in weights.items()}
    write_folder(Path(), config, arrays, [list(arrays)[::2], list(arrays)[1::2]])
    path = Path("model.safetensors.index.json")
    return Target([path.read_bytes()], changed_json, lambda raw: _read_folder(path, raw))


def config_of_a_folder() -> Target:
    config, weights = checkpoint()
    write_folder(Path(), config, {name: stored(values, "BF16") for name, values in weights.items()})
    return Target([json.dumps(config).encode()], changed_json, lambda raw: _read_folder(Path("config.json"), raw))


def _read_folder(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    with open_hf_folder(".", DType.Q40) as model:
        _use_model(model)


def config_of_a_family() -> Target:
    def read(raw: bytes) -> None:
        config = describe(json.loads(raw), "config.json").config
        assert not config.problem()

    sound = [json.dumps(json.loads(path.read_text())["config"]).encode() for path in sorted(GOLDEN.glob("*.json"))]
    return Target(sound, _changed_but_json, read)


def _changed_but_json(raw: bytes, rng: Random) -> bytes:
    """Change an object that stays JSON."""
    while True:
        found = changed_json(raw, rng)
        try:
            json.loads(found)
        except ValueError:
            continue
        return found


def gguf() -> Target:
    tokenizer: dict[str, Value] = {"tokenizer.ggml.tokens": ["a", "bc"], "tokenizer.ggml.scores": [0.0, -1.0]}
    sound, heads = [], {}
    for name in ("llama, llama3", "qwen3_moe", "gemma3_text", "phi3"):
        export_gguf(MemoryModel(family_configs(DType.Q40)[name]), "a.gguf", tokenizer)
        sound.append(Path("a.gguf").read_bytes())
        heads[len(sound[-1])] = read_container("a.gguf").data_offset

    def read(raw: bytes) -> None:
        Path("a.gguf").write_bytes(raw)
        with open_gguf("a.gguf") as model:
            assert not model.config.problem()
            _use_model(model)

    return Target(sound, lambda raw, rng: changed_bytes(raw, rng, heads[len(raw)]), read)


def gguf_container() -> Target:
    pairs = [text_pair("general.architecture", "llama"), number_pair("n", 5), array_pair("scores", F32, 3, bytes(12))]
    pairs.append(array_pair("tokens", STRING, 3, string("a") + string("bc") + string("")))
    sound = RawFile(pairs, [RawTensor("a", (4, 2)), RawTensor("b", (32, 1), 2, 32)], bytes(64)).raw()

    def read(raw: bytes) -> None:
        Path("a.gguf").write_bytes(raw)
        found = read_container("a.gguf")
        assert all(info.offset + info.nbytes <= len(raw) for info in found.tensors.values())
        assert all(
            len(list(value)) == len(value) for value in found.metadata.values() if isinstance(value, StringArray)
        )

    return Target([sound], changed_bytes, read)


TENSORS = {"a.weight": np.ones((3, 8), "<f4"), "b.weight": np.ones((2, 16), "<f2"), "c.weight": bf16(np.ones(8, "<f4"))}


def pth() -> Target:
    def read(raw: bytes) -> None:
        Path("a.pth").write_bytes(raw)
        file, tensors = open_pth("a.pth")
        with file:
            for each in tensors.values():
                assert each.offset + math.prod(each.shape) * each.number_type.num_bytes <= len(raw)

    return Target([write_pth(Path("a.pth"), TENSORS).read_bytes()], changed_bytes, read)


def pickle() -> Target:
    def read(raw: bytes) -> None:
        for view in read_tensors(raw, "a.pth").values():
            assert 0 <= view.first <= view.first + math.prod(view.shape) <= view.storage.count

    return Target([program_of(TENSORS)], changed_bytes, read)


def params() -> Target:
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings": (8, 32), "norm": (32,), "output": (8, 32)}
    shapes |= {f"layers.0.attention.{name}": (32, 32) for name in ("wq", "wk", "wv", "wo")}
    shapes |= {f"layers.0.feed_forward.{name}": (32, 32) for name in ("w1", "w2", "w3")}
    shapes |= {f"layers.0.{name}": (32,) for name in ("attention_norm", "ffn_norm")}
    write_pth(Path("consolidated.00.pth"), {f"{name}.weight": np.ones(shape, "<f4") for name, shape in shapes.items()})
    fields: dict[str, Any] = {"dim": 32, "n_heads": 2, "n_kv_heads": 2, "n_layers": 1, "norm_eps": 1e-5}
    fields |= {"vocab_size": 8, "multiple_of": 32, "rope_theta": 500000.0, "use_scaled_rope": True, "max_seq_len": 64}

    def read(raw: bytes) -> None:
        Path("params.json").write_bytes(raw)
        with open_meta_folder(".", DType.Q40) as model:
            _use_model(model)

    return Target([json.dumps(fields).encode()], changed_json, read)


def session() -> Target:
    value = {
        "format": "dllama-session",
        "version": 1,
        "template": "llama3",
        "started": "2026-05-01T12:00:00+00:00",
        "model": {"name": "a.m", "hash": "12", "tokenizer_hash": "34"},
        "settings": {"temperature": "0.8"},
        "messages": [{"role": "system", "content": "é"}, {"role": "user", "content": "hello"}],
        "token_ids": [1, 2, 3],
        "marks": [{"text": "<s>", "num_tokens": 1}, {"text": "a", "num_tokens": 2}],
        "has_base": True,
        "num_answers": 1,
    }

    def read(raw: bytes) -> None:
        Path("a.json").write_bytes(raw)
        found = read_session("a.json")
        assert sum(mark.num_tokens for mark in found.marks) == len(found.token_ids)

    return Target([json.dumps(value).encode()], changed_json, read)


def session_ids() -> Target:
    def read(raw: bytes) -> None:
        Path("a.csv").write_bytes(raw)
        assert all(0 <= token_id < 1 << 31 for token_id in read_token_ids("a.csv"))

    return Target([b"1,2,3,2147483647\n", b"1, 2,3\r\n4\n5,\n"], changed_bytes, read)


def messages() -> Target:
    write_tiny_model(Path("a.m"))
    said = [Hello("root", bytes(32), True, bytes(16)), Challenge(bytes(32), False), Refused("no", 5), Missing(b"\1\2")]
    said += [Facts("commit", "avx2", 4, 1 << 34), Failed("a disk broke", 1), Pulse(3, {"steps": 1})]
    said.append(setup_of(Path("a.m"), [Address("10.0.0.2", 9999)], shares=[1.0, 2.0]))
    sound = [protocol.encode(message) for message in said]

    def read(raw: bytes) -> None:
        assert isinstance(protocol.decode(raw), protocol.Message)

    return Target(sound, changed_bytes, read, (msgspec.DecodeError,))


def setup() -> Target:
    """What a worker makes of a setup of any content, here as JSON, so that single values can change."""
    sound = []
    for name in ("llama, llama3", "qwen3_moe", "gemma3_text", "phi3"):
        write_tiny_model(Path("a.m"), family_configs(DType.Q40)[name])
        sound.append(msgspec.json.encode(setup_of(Path("a.m"), [Address("10.0.0.2", 9999)])))

    def read(raw: bytes) -> None:
        check_setup(msgspec.json.decode(raw, type=Setup), 1)

    refusals = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, DllamaError)
    return Target(sound, changed_json, read, refusals)


# How many cases each has in `make test`: 215,000 in all.
READERS: Mapping[Callable[[], Target], int] = {
    m_file: 15_000,
    m_file_of_ours: 12_000,
    safetensors: 15_000,
    index: 8_000,
    config_of_a_folder: 8_000,
    config_of_a_family: 20_000,
    gguf: 10_000,
    gguf_container: 10_000,
    gguf_vocabulary: 6_000,
    t_file: 8_000,
    tokenizer_json: 6_000,
    beside_a_tokenizer: 4_000,
    sentencepiece: 6_000,
    tiktoken: 8_000,
    pth: 12_000,
    pickle: 15_000,
    params: 6_000,
    session: 12_000,
    session_ids: 6_000,
    messages: 20_000,
    setup: 8_000,
}


def main(name: str, first: int, count: int, progress: str) -> None:
    """Read changed files of one kind; say what became of them."""
    target = next(make for make in READERS if make.__name__ == name)()
    sys.stdout.write(json.dumps(run(target, first, count, os.open(progress, os.O_WRONLY | os.O_CREAT))))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
