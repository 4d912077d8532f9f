"""What a model's makers say of sampling and ends: read, shown, and used where the user chose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, Files  # type: ignore[import-not-found]

from dllama.errors import UsageError
from dllama.formats.generation_config import eos_ids_of, generation_defaults
from dllama.text.gguf_export import gguf_metadata
from dllama.text.gguf_vocabulary import gguf_vocabulary
from dllama.text.opening import open_tokenizer
from dllama.text.pre_tokenizers import PRE_TOKENIZERS
from dllama.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        (
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0},
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0},
        ),
        ({"do_sample": True, "repetition_penalty": 1.05}, {"repeat_penalty": 1.05}),
        ({"do_sample": False, "temperature": 0.6, "top_k": 5, "top_p": 0.5}, {"temperature": 0.0}),
        ({"do_sample": False, "repetition_penalty": 1.1}, {"temperature": 0.0, "repeat_penalty": 1.1}),
        ({"temperature": -1, "top_p": 2, "top_k": -4, "min_p": True, "repetition_penalty": 0}, {}),
        ({"temperature": "0.5", "top_k": 1.5, "top_p": None}, {}),
    ],
)
def test_settings_are_taken_by_our_names(config: dict[str, Any], expected: dict[str, float]) -> None:
    assert generation_defaults(config).settings() == expected


@pytest.mark.parametrize(
    ("given", "expected"), [(3, (3,)), ([5, 3, 5], (5, 3)), (None, ()), ([], ()), ("x", ()), ([True, 2.0, 4], (4,))]
)
def test_ends_come_alone_or_in_a_list(given: object, expected: tuple[int, ...]) -> None:
    assert eos_ids_of({"eos_token_id": given}) == expected


def folder_of(files: Files, folder: Path, **content: Any) -> Path:
    """Write the tokenizer of a tiny model as a Hugging Face folder has it."""
    metadata = gguf_metadata(Tokenizer.from_file(files.tokenizer))
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    vocab = {token: token_id for token_id, token in enumerate(tokens) if kinds[token_id] == 1}
    added = [
        {"id": token_id, "content": token, "special": True}
        for token_id, token in enumerate(tokens)
        if kinds[token_id] != 1
    ]
    model = {"type": "BPE", "vocab": vocab, "merges": metadata["tokenizer.ggml.merges"], "ignore_merges": True}
    bos = metadata["tokenizer.ggml.bos_token_id"]
    starts = [{"SpecialToken": {"id": tokens[bos], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    ends = {"type": "TemplateProcessing", "single": starts, "special_tokens": {tokens[bos]: {"ids": [bos]}}}
    tokenizer = {"added_tokens": added, **PRE_TOKENIZERS["llama-bpe"].parts(), "post_processor": ends, "model": model}
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    for name, value in {"tokenizer": tokenizer, "tokenizer_config": config, **content}.items():
        (folder / f"{name}.json").write_text(json.dumps(value), "utf-8")
    return folder


def test_a_folder_says_what_ends_an_answer(tiny: Files, tmp_path: Path) -> None:
    stored = Tokenizer.from_file(tiny.tokenizer)
    ends = list(reversed(stored.eos_ids))
    folder = folder_of(tiny, tmp_path)
    assert open_tokenizer(folder).eos_ids == (stored.special_names["<|eot_id|>"],)
    folder_of(tiny, tmp_path, config={"eos_token_id": ends[0]})
    assert open_tokenizer(folder).eos_ids == (ends[0],)
    folder_of(tiny, tmp_path, generation_config={"eos_token_id": ends, "top_k": 7})
    tokenizer = open_tokenizer(folder)
    assert tokenizer.eos_ids == tuple(ends)
    assert tokenizer.generation.settings() == {"top_k": 7}
    assert tokenizer.encode("hello") == stored.encode("hello")


def test_settings_of_the_model_are_used_and_shown(dllama: Command, tiny: Files, tmp_path: Path) -> None:
    folder = folder_of(tiny, tmp_path, generation_config={"temperature": 0.25, "top_p": 0.5, "top_k": 3})
    command = ["inference", "--model", tiny.model, "--tokenizer", folder, "--prompt", "hello", "--steps", 4]
    plain = dllama(*command, "--seed", 1)
    assert "🎲 Sampling: temperature 0.25, topp 0.5, top-k 3 (of the model)" in plain.stdout.splitlines()
    chosen = dllama(*command, "--seed", 1, "--topp", 1, env={"DLLAMA_TOP_K": "0"})
    assert "🎲 Sampling: temperature 0.25 (of the model)" in chosen.stdout.splitlines()
    same = dllama(*command, "--seed", 1, "--temperature", 0.25, "--topp", 0.5, "--top-k", 3, "--json")
    stored = dllama(
        *command[:4],
        tiny.tokenizer,
        *command[5:],
        "--seed",
        1,
        "--temperature",
        0.25,
        "--topp",
        0.5,
        "--top-k",
        3,
        "--json",
    )
    defaults = dllama(*command, "--seed", 1, "--json")
    ids = [json.loads(run.stdout)["token_ids"] for run in (same, stored, defaults)]
    assert ids[0] == ids[1] == ids[2]


def test_a_model_that_does_not_sample_is_greedy(dllama: Command, tiny: Files, tmp_path: Path) -> None:
    folder = folder_of(tiny, tmp_path, generation_config={"do_sample": False, "temperature": 0.9})
    command = ["inference", "--model", tiny.model, "--tokenizer", folder, "--prompt", "hello", "--steps", 6, "--json"]
    runs = [dllama(*command, "--seed", seed) for seed in (1, 2)]
    assert json.loads(runs[0].stdout)["token_ids"] == json.loads(runs[1].stdout)["token_ids"]


def test_gguf_files_say_the_same_in_their_way(tiny: Files) -> None:
    metadata = gguf_metadata(Tokenizer.from_file(tiny.tokenizer))
    metadata |= {"general.sampling.temp": 0.6000000238418579, "general.sampling.top_k": 20}
    metadata |= {"general.sampling.penalty_repeat": 1.5, "tokenizer.chat_template.tool_use": "tools"}
    tokenizer = Tokenizer(gguf_vocabulary("a.gguf", metadata))
    assert tokenizer.generation.settings() == {"temperature": 0.6, "top_k": 20, "repeat_penalty": 1.5}
    assert tokenizer.chat_templates["tool_use"] == "tools"
    assert tokenizer.eos_ids == Tokenizer.from_file(tiny.tokenizer).eos_ids


def test_a_tokenizer_may_have_more_names_than_the_model_rows(tiny: Files, tmp_path: Path) -> None:
    from dllama.engine import Engine

    folder = folder_of(tiny, tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    last = max(token["id"] for token in tokenizer["added_tokens"])
    tokenizer["added_tokens"].append({"id": last + 1, "content": "<image_soft_token>", "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    with Engine.load(tiny.model, folder) as engine:
        assert engine.tokenizer is not None
        ids = engine.tokenizer.encode("a<image_soft_token>", parse_special=True)
        assert ids[-1] == last + 1 == engine.config.vocab_size
        with pytest.raises(UsageError, match=f"expected token ids from 0 to {last}, found {last + 1}"):
            engine.add(ids)
