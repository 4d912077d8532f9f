"""Conversations and streams in vocabularies of every kind: piece by piece they are what the whole text is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizer_worlds import (  # type: ignore[import-not-found]
    cut_by,
    save,
    spm_as_json,
    spm_bytes,
    texts,
    train_byte_level,
    with_bos,
)
from tokenizers import AddedToken

from dllama.text.chat_template import choose_template
from dllama.text.conversation import Conversation
from dllama.text.detokenizer import Detokenizer
from dllama.text.gguf_export import gguf_metadata
from dllama.text.gguf_vocabulary import gguf_vocabulary
from dllama.text.opening import open_tokenizer
from dllama.text.rank_bpe import LLAMA3_PATTERN
from dllama.text.tokenizer import Tokenizer

TURNS = ("<|system|>", "<|user|>", "<|assistant|>")
PHI = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '[INST] ' + message.content }} [/INST]"
    "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)


def phi(folder: Path) -> Tokenizer:
    """Make a vocabulary whose turn markers take the white space behind them."""
    library = train_byte_level(cut_by(LLAMA3_PATTERN), ("<s>", "</s>"), vocab_size=600)
    library.add_special_tokens([AddedToken(name, rstrip=True) for name in (*TURNS, "<|end|>")])
    config = {"bos_token": "<s>", "eos_token": "<|end|>", "chat_template": PHI}
    return open_tokenizer(save(library, folder, config))


def llama(prefix: str | None) -> Callable[[Path], Tokenizer]:
    def make(folder: Path) -> Tokenizer:
        library = with_bos(spm_as_json(spm_bytes("bpe"), prefix), "<s>")
        return open_tokenizer(save(library, folder, {"bos_token": "<s>", "eos_token": "</s>", "chat_template": LLAMA}))

    return make


def model(folder: Path) -> Tokenizer:
    (folder / "tokenizer.model").write_bytes(spm_bytes("bpe"))
    (folder / "chat_template.jinja").write_text(LLAMA, "utf-8")
    return open_tokenizer(folder)


def gguf(folder: Path) -> Tokenizer:
    return Tokenizer(gguf_vocabulary("a.gguf", gguf_metadata(model(folder))))


KINDS = {
    "phi": phi,
    "always": llama("always"),
    "first": llama("first"),
    "never": llama(None),
    "spm": model,
    "gguf": gguf,
}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return KINDS[request.param](tmp_path)


def test_a_conversation_has_the_ids_of_its_whole_text(tokenizer: Tokenizer) -> None:
    with choose_template(tokenizer) as template:
        talk = Conversation(template, tokenizer)
        for question, answer in (("kalo mi", "there"), ("123 </s> <|end|>", "  x y"), ("again\n", "re 中文")):
            talk.add_user(question)
            told = talk.prompt()
            assert list(told.token_ids) == template.encode(talk.messages), question
            said = tokenizer.encode(f" {answer}" if "INST" in told.text else answer, False, after=told.token_ids)
            talk.add_answer(answer, [*said, template.stop_ids[0]])
        saved = Conversation(template, tokenizer)
        saved.restore(talk.messages, talk.pieces())
        assert saved.token_ids == talk.token_ids[: len(saved.token_ids)]  # what is not believed is encoded again


def test_a_stream_is_the_text_that_all_ids_are(tokenizer: Tokenizer) -> None:
    for text in texts(300, seed=9):
        ids = tokenizer.encode(text)
        detokenizer = Detokenizer(tokenizer)
        streamed = "".join([detokenizer.add(token_id) for token_id in ids]) + detokenizer.finish()
        assert streamed == tokenizer.decode(ids)
        whole = b"".join(tokenizer.token_bytes(token_id, first=False) for token_id in ids).decode("utf-8", "replace")
        assert streamed in (whole, whole.removeprefix(" "))
        assert streamed in (text, text.removeprefix(" "))  # transformers' "first" takes a space of the text's own
