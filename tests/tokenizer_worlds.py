"""Vocabularies of every kind, trained here in a moment, and texts that try them."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

VOCAB_SIZE = 2200
_SYLLABLES = (
    *("ka", "lo", "mi", "ther", "ing", "est", "re", "un", "dé", "ñor", "über", "中", "文字", "при", "вет", "ال"),
    *("كت", "한국", "で", "す", "th", "e", "a", "o", "s"),
)
_CODE = ("def f(x):\n\treturn x", "for (i = 0; i < 10; ++i)", "a->b != NULL;", "x = {'k': [1, 2]}", "// done\r\n")
_ENDS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'LL", "'Ve", "’s")
_SPACES = (" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u2028", "     ", "\x0b", "\x85")
_SIGNS = (
    *"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "...",
    "!!!",
    "—",
    "«",
    "。",
    "🙂",
    "👩‍👩‍👧",
    "€",
    "½",
    "²³",
    "Ⅷ",
    "٣",
)
_ACCENTS = (
    "e\u0301",
    "\u0301",
    "ñ",
    "n\u0303",
    "\u1e9b\u0323",
    "ﬁ",
    "Ω",
    "\u212b",
    "각",
    "\u1100\u1161\u11a8",
    "İ",
    "ß",
)
LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@cache
def corpus() -> list[str]:
    """Give lines of made-up words, numbers and code, always the same."""
    rng = random.Random(3)
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(5000)]
    weights = [1 / (place + 3) for place in range(len(words))]
    lines = []
    for _ in range(2500):
        line = rng.choices(words, weights, k=9)
        line += [
            str(rng.randint(0, 99999)),
            rng.choice(_CODE),
            rng.choice(words) + rng.choice(_ENDS),
            rng.choice(_ACCENTS),
        ]
        rng.shuffle(line)
        lines.append(rng.choice((" ", " ", "  ", "\n")).join(line))
    return lines


def texts(count: int, names: Sequence[str] = (), seed: int = 1) -> list[str]:
    """Give texts of all planes of Unicode, runs of white space, digits, endings, code, and names of special tokens."""
    rng = random.Random(seed)
    lines = corpus()

    def anywhere() -> str:
        while 0xD800 <= (code := rng.randrange(0x11_0000 if rng.random() < 0.3 else 0x3000)) < 0xE000:
            pass
        return chr(code)

    def word() -> str:
        return rng.choice(rng.choice(lines).split() or ["x"])

    makers = (
        anywhere,
        word,
        lambda: " " + word(),
        lambda: rng.choice(_SPACES),
        lambda: str(rng.randrange(10 ** rng.randint(1, 9))),
        lambda: word() + rng.choice(_ENDS),
        lambda: rng.choice(_CODE),
        lambda: rng.choice(_SIGNS),
        lambda: rng.choice(_ACCENTS),
        lambda: rng.choice(names) if names else rng.choice(_SIGNS),
        lambda: rng.choice(names)[:-1] if names else word(),
    )
    return ["".join(rng.choice(makers)() for _ in range(rng.randint(0, 9))) for _ in range(count)]


def train_byte_level(
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    special: Sequence[str],
    composes: bool = False,
    first: bool = False,
    vocab_size: int = VOCAB_SIZE,
) -> Library:
    """Train a byte-level BPE; its special tokens come behind the pieces, or ``first``."""
    library = Library(models.BPE())
    library.normalizer = normalizers.NFC() if composes else None
    library.pre_tokenizer = pre_tokenizer
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special) if first else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(corpus(), trainer)
    library.add_special_tokens(list(special))
    return library


def cut_by(*patterns: str) -> pre_tokenizers.PreTokenizer:
    """Give a pre-tokenizer of regular expressions, one after the other."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def with_bos(library: Library, bos: str) -> Library:
    """Have BOS put before every text."""
    library.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, library.token_to_id(bos))]
    )
    return library


def save(library: Library, folder: Path, tokenizer_config: dict[str, Any] | None = None, **files: Any) -> Path:
    """Write ``tokenizer.json`` and, if given, ``tokenizer_config.json`` and others; give the first."""
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    for name, content in {"tokenizer_config": tokenizer_config, **files}.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder / "tokenizer.json"


@cache
def spm_bytes(model_type: str, **options: Any) -> bytes:
    """Train a SentencePiece model; a second call with the same arguments gives the same bytes."""
    model = io.BytesIO()
    settings = {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "split_digits": True,
        "split_by_unicode_script": False,
        "allow_whitespace_only_pieces": True,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in corpus() for line in text.splitlines()),
        model_writer=model,
        model_type=model_type,
        vocab_size=VOCAB_SIZE,
        num_threads=1,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()


def spm_as_json(raw: bytes, prefix: str | None = "always", gemma: bool = False) -> Library:
    """Write a SentencePiece BPE the way Hugging Face's converters do: merges by the score of what they make.

    Args:
        raw: The model.
        prefix: ``"always"``: a space before each text as Llama 2's; ``"first"``: before the first alone; None: none.
        gemma: Whether the pieces that users of SentencePiece define are added tokens.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=raw)
    pieces = [processor.id_to_piece(token_id) for token_id in range(processor.vocab_size())]
    vocab = {piece: token_id for token_id, piece in enumerate(pieces)}
    defined = set(_defined(raw))
    is_plain = [
        not (processor.is_control(each) or processor.is_unknown(each) or processor.is_byte(each) or each in defined)
        for each in range(len(pieces))
    ]
    merges = []
    for piece, token_id in vocab.items():
        if is_plain[token_id]:
            cuts = [(piece[:place], piece[place:]) for place in range(1, len(piece))]
            pairs = [pair for pair in cuts if pair[0] in vocab and pair[1] in vocab]
            merges += [(processor.get_score(token_id), vocab[left], vocab[right], left, right) for left, right in pairs]
    merges.sort(key=lambda row: (-row[0], row[1], row[2]))
    library = Library(
        models.BPE(vocab, [(row[3], row[4]) for row in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    marks = normalizers.Replace(" ", "▁")
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    if prefix == "first":
        library.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    elif prefix == "always":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marks])
    else:
        library.normalizer = marks
    library.add_special_tokens([piece for each, piece in enumerate(pieces) if processor.is_control(each)] + ["<unk>"])
    library.add_tokens([pieces[each] for each in defined] if gemma else [])
    return library


def _defined(raw: bytes) -> list[int]:
    """Give the ids of user-defined pieces."""
    from dllama.formats import spm_model

    pieces = [content for field, content in spm_model._fields(raw) if field == 1 and isinstance(content, bytes)]
    fields = [spm_model._parse_piece(0, content) for content in pieces]
    return [place for place, (_, _, kind) in enumerate(fields) if kind == spm_model.USER_DEFINED]


def tiktoken_lines(library: Library) -> bytes:
    """Write the pieces of a byte-level BPE as a file of tiktoken."""
    from dllama.text import byte_level

    vocab = json.loads(library.to_str())["model"]["vocab"]
    pieces = sorted(vocab, key=vocab.__getitem__)
    lines = [base64.b64encode(byte_level.to_bytes(piece)) + b" %d\n" % rank for rank, piece in enumerate(pieces)]
    return b"".join(lines)
