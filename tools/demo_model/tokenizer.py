"""Train the byte-level BPE: regular tokens in merge order, then the special tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS, SOH, EOH, EOT = SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
VOCAB_SIZE = 2048
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], path: Path) -> Tokenizer:
    """`texts` may contain special tokens; they are cut out before training."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, "the sample text is too small for the vocabulary"
    tokenizer.save(str(path))
    return tokenizer


def _pieces(text: str) -> list[str]:
    for token in SPECIAL_TOKENS:
        text = text.replace(token, "\0")
    return text.split("\0")


def _byte_of_symbol() -> dict[str, int]:
    """Undo the printable byte alphabet of byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in plain}
    shifted = (byte for byte in range(256) if byte not in plain)
    return table | {chr(256 + index): byte for index, byte in enumerate(shifted)}


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every token in id order; special tokens as their text."""
    table = _byte_of_symbol()
    symbols = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    num_regular = len(symbols) - len(SPECIAL_TOKENS)
    return [bytes(table[c] for c in s) for s in symbols[:num_regular]] + [s.encode() for s in symbols[num_regular:]]


def check_ranks(tokenizer: Tokenizer, texts: Iterable[str]) -> int:
    """Compare with a rank BPE (tiktoken) on `texts`; returns the number of tokens compared."""
    import tiktoken

    regular = token_bytes(tokenizer)[: -len(SPECIAL_TOKENS)]
    assert len(set(regular)) == len(regular)
    assert all(bytes([byte]) in regular[:256] for byte in range(256))
    ranks = {piece: index for index, piece in enumerate(regular)}
    special = {token: len(regular) + index for index, token in enumerate(SPECIAL_TOKENS)}
    reference = tiktoken.Encoding("demo", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    compared = 0
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert ids == reference.encode(text, allowed_special="all"), f"rank BPE differs on {text!r}"
        compared += len(ids)
    return compared
