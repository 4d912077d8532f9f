"""From what a caller gives to token ids that a model can take, or one line that says why not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import index
from os import PathLike
from typing import TYPE_CHECKING

from dllama.config import ModelConfig
from dllama.engine.params import SamplingParams
from dllama.errors import ContextFull, UsageError

if TYPE_CHECKING:
    from dllama.text.tokenizer import Tokenizer


def open_tokenizer(source: str | PathLike[str] | Tokenizer | None, config: ModelConfig) -> Tokenizer | None:
    """Load a tokenizer, unless it is loaded or None, and check that it can be the model's."""
    if source is None:
        return None
    from dllama.text.tokenizer import Tokenizer

    if not isinstance(source, Tokenizer):
        check_path("tokenizer", source)
        source = Tokenizer.from_file(source)
    tokenizer = source
    if tokenizer.least_rows > config.vocab_size:  # fewer is usual: models pad their vocabularies
        raise UsageError(
            f"tokenizer: expected at most the model's {config.vocab_size} tokens, found {tokenizer.least_rows}; "
            "it belongs to another model"
        )
    return tokenizer


def to_token_ids(prompt: str | Sequence[int], tokenizer: Tokenizer | None, config: ModelConfig) -> list[int]:
    """Encode text, or check token ids: at least one, all in the vocabulary."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise UsageError("prompt: expected token ids, found text; text needs a tokenizer")
        prompt = tokenizer.encode(prompt)
    try:
        token_ids = [index(token) for token in prompt]
    except TypeError:
        raise UsageError(f"prompt: expected text or whole numbers, found {prompt!r:.80}") from None
    if not token_ids:
        raise UsageError("prompt: expected at least one token, found none")
    check_ids("prompt", token_ids, config)
    return token_ids


def check_ids(name: str, token_ids: Iterable[int], config: ModelConfig) -> None:
    """Raise UsageError for the first id outside the model's vocabulary."""
    for token in token_ids:
        if not 0 <= token < config.vocab_size:
            raise UsageError(f"{name}: expected token ids from 0 to {config.vocab_size - 1}, found {token}")


def check_sampling(sampling: SamplingParams, tokenizer: Tokenizer | None, config: ModelConfig) -> None:
    """Raise UsageError for ids outside the model's vocabulary, and for texts that nobody can compare."""
    if not isinstance(sampling, SamplingParams):
        raise UsageError(f"sampling: expected SamplingParams, found {sampling!r:.80}")
    check_ids("stop_token_ids", sampling.stop_token_ids, config)
    check_ids("stop_sequences", chain.from_iterable(sampling.stop_sequences), config)
    check_ids("logit_bias", sampling.logit_bias, config)
    if sampling.stop and tokenizer is None:
        raise UsageError("stop: expected no texts without a tokenizer; give token ids (stop_sequences)")


def check_path(name: str, path: object) -> None:
    """Raise UsageError for what cannot be the path of a file."""
    if not isinstance(path, str | PathLike):
        raise UsageError(f"{name}: expected the path of a file, found {path!r:.80}")


def check_length(num_tokens: int, longest: int) -> None:
    """Raise ContextFull if there are more than ``longest`` tokens."""
    if num_tokens > longest:
        raise ContextFull(
            f"the prompt has {num_tokens} tokens, and the context takes at most {longest}; "
            "shorten it, or raise max_seq_len (--max-seq-len) if the model allows more"
        )
