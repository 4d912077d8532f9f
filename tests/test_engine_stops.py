"""Stops of a request: how they end it, what they leave of its text, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from engines import PROMPT, load_engine, run, tokens, write_models  # type: ignore[import-not-found]

from dllama.engine import Engine, Output, SamplingParams
from dllama.errors import UsageError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(files):
    with load_engine(files) as engine:
        yield engine


@pytest.fixture
def say(engine, monkeypatch):
    """Give a function that lets the model 'choose' these bytes, each a token, and gives the outputs of the request."""

    def say(answer: bytes, **fields: Any) -> list[Output]:
        request_id = engine.add(PROMPT, SamplingParams(**({"max_tokens": len(answer)} | fields)))
        choices: Iterator[int] = iter(answer)
        monkeypatch.setattr(engine._requests[request_id]._sampler, "choose", lambda *_: next(choices))
        return list(run(engine)[request_id])

    return say


def test_a_string_across_tokens(say):
    outputs = say(b"Hi.\nUser: and more", stop=["\nUser:", "\nBot:"])
    assert [output.text for output in outputs] == ["H", "i", ".", *[""] * 6]
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", "\nUser:")
    assert outputs[-1].token_id == ord(":")


def test_characters_of_several_tokens(say):
    outputs = say("a€€!".encode(), stop=["€!"])
    assert "".join(output.text for output in outputs) == "a€"
    assert outputs[-1].stop_reason == "€!"


def test_a_sequence_of_tokens(say):
    outputs = say(b"ababc!", stop_sequences=[[97, 98, 99], (98, 98)])
    assert [output.text for output in outputs] == ["", "", "ab", "", ""]
    assert outputs[-1].stop_reason == (97, 98, 99)


def test_sequences_begin_behind_the_prompt(say):
    assert PROMPT[-1] == 8
    assert len(say(b"\x09ab", stop_sequences=[[8, 9]])) == 3


def test_what_else_ends_a_request(say, engine):
    (*_, length) = say(b"<en", stop=["<end>"])
    assert (length.text, length.finish_reason, length.stop_reason) == ("<en", "length", None)
    (*_, token) = say(b"<e\x07", stop=["<end>"], stop_token_ids=[7])
    assert (token.text, token.finish_reason, token.stop_reason) == ("<e", "stop", 7)
    eos = engine.tokenizer.eos_ids[0]
    (output,) = engine.generate(PROMPT, SamplingParams(logit_bias={eos: 1000.0}))
    assert output.stop_reason == eos


def test_a_stop_with_the_last_token_allowed_is_a_stop(say):
    assert say(b"ab", stop=["b"])[-1].finish_reason == "stop"


def test_ignore_eos_leaves_stops(engine):
    eos = engine.tokenizer.eos_ids[0]
    fields: dict[str, Any] = {"logit_bias": {eos: 1000.0}, "ignore_eos": True, "max_tokens": 5}
    outputs = list(engine.generate(PROMPT, SamplingParams(stop_sequences=[[eos, eos, eos]], **fields)))
    assert len(outputs) == 3
    assert outputs[-1].stop_reason == (eos, eos, eos)


def test_cancelling_gives_what_was_held_back(engine, monkeypatch):
    request_id = engine.add(PROMPT, SamplingParams(stop=["<end>"], stop_sequences=[(110, 100)]))
    choices = iter(b"<en")
    monkeypatch.setattr(engine._requests[request_id]._sampler, "choose", lambda *_: next(choices))
    assert [engine.step()[0].text for _ in range(3)] == ["", "", ""]
    engine.cancel(request_id)
    (output,) = engine.step()
    assert (output.text, output.finish_reason, output.stop_reason) == ("<en", "cancelled", None)


def test_strings_need_a_tokenizer(files):
    with Engine.load(files / "model.m", num_threads=1) as engine:
        with pytest.raises(UsageError, match="stop: expected no texts without a tokenizer"):
            engine.add(PROMPT, SamplingParams(stop=["x"]))
        (first,) = tokens(engine.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=1)))
        sampling = SamplingParams(temperature=0.0, stop_sequences=[[first]])
        (output,) = engine.generate(PROMPT, sampling)
        assert (output.text, output.stop_reason) == ("", (first,))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": "User:"}, r"stop: expected a list of texts, found 'User:'"),
        ({"stop": None}, r"stop: expected a list of texts, found None"),
        ({"stop": [b"x"]}, r"stop: expected texts, found b'x'"),
        ({"stop": ["a", ""]}, r"stop: expected 1 to 256 characters in each, found 0"),
        ({"stop": ["a" * 257]}, r"found 257"),
        ({"stop": ["a"] * 65}, r"stop: expected at most 64, found 65"),
        ({"stop_sequences": [5]}, r"stop_sequences: expected a list of token ids, found 5"),
        ({"stop_sequences": [[1], []]}, r"stop_sequences: expected 1 to 256 token ids in each, found 0"),
        ({"stop_sequences": [[1, -1]]}, r"stop_sequences: token id: expected a whole number"),
        ({"stop_sequences": ["ab"]}, r"stop_sequences: expected a list of token ids, found 'ab'"),
        ({"stop_token_ids": 5}, r"stop_token_ids: expected a list of token ids, found 5"),
        ({"stop_token_ids": [1.5]}, r"stop_token_ids: token id: expected a whole number"),
        ({"logit_bias": [1]}, r"logit_bias: expected a mapping"),
        ({"logit_bias": {"a": 1.0}}, r"logit_bias: token id: expected a whole number"),
        ({"logit_bias": {1: "a"}}, r"logit_bias\[1\]: expected a number"),
        ({"ignore_eos": None}, r"ignore_eos: expected True or False, found None"),
        ({"temperature": None}, r"temperature: expected a number"),
        ({"top_k": 1.5}, r"top_k: expected a whole number"),
    ],
)
def test_fields_of_the_wrong_kind(fields, message):
    with pytest.raises(UsageError, match=message) as caught:
        SamplingParams(**fields)
    assert "\n" not in str(caught.value)


def test_ids_outside_the_vocabulary_and_params_that_are_none(engine):
    with pytest.raises(UsageError, match="stop_sequences: expected token ids from 0 to 319, found 320"):
        engine.add(PROMPT, SamplingParams(stop_sequences=[[1, 320]]))
    with pytest.raises(UsageError, match="sampling: expected SamplingParams, found None"):
        engine.add(PROMPT, None)
