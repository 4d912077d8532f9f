"""Text to token ids and back, for every kind of vocabulary.

This file knows what all kinds share: special tokens are found by name in the text of templates and in no other, and the
text between them goes to the vocabulary. ``opening`` finds out what a file holds.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from dllama.formats.t_file import TokenizerData
from dllama.text.guard import GUARD
from dllama.text.t_vocabulary import TVocabulary
from dllama.text.vocabulary import LEADING_SPACE, NO_ID, WHITE_SPACE, Place, SpecialName, Vocabulary

if TYPE_CHECKING:
    from dllama.formats.generation_config import GenerationDefaults

_IN_WORDS = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"}  # categories


class Tokenizer:
    """A vocabulary that encodes and decodes.

    Args:
        source: The vocabulary.
        path: Where it came from, for messages.

    Raises:
        BadFile: The vocabulary cannot encode every text.
    """

    def __init__(self, source: TokenizerData | Vocabulary, path: str | os.PathLike[str] = "tokenizer") -> None:
        self._vocabulary = TVocabulary(source, os.fspath(path)) if isinstance(source, TokenizerData) else source

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Load a tokenizer of any kind; errors as in ``opening.open_tokenizer``."""
        from dllama.text.opening import open_vocabulary

        return cls(open_vocabulary(path))

    @property
    def vocabulary(self) -> Vocabulary:
        """What knows the pieces."""
        return self._vocabulary

    @property
    def data(self) -> TokenizerData:
        """The vocabulary as a ``.t`` file holds it.

        Raises:
            UnsupportedModel: Such a file cannot hold it, or would give other ids.
        """
        return self._vocabulary.to_t_data()

    @property
    def vocab_size(self) -> int:
        """Number of tokens; may be less than the model's, whose further ids have no text."""
        return self._vocabulary.vocab_size

    @property
    def least_rows(self) -> int:
        """Tokens that a model of this tokenizer has at least."""
        return self._vocabulary.least_rows

    @property
    def bos_id(self) -> int:
        """The token before every text; -1 in a vocabulary that has none."""
        return self._vocabulary.facts.bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return self._vocabulary.facts.eos_ids

    @property
    def add_bos(self) -> bool:
        """Whether the model wants ``bos_id`` before every text."""
        return self._vocabulary.facts.add_bos

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """The model's own Jinja texts, untrusted: ``"default"``, and others such as ``"tool_use"``."""
        return self._vocabulary.facts.chat_templates

    @property
    def token_texts(self) -> Mapping[str, str] | None:
        """Special tokens as templates name them, ``"eos_token"`` and the like; None: the file does not say."""
        return self._vocabulary.facts.token_texts

    @property
    def generation(self) -> GenerationDefaults:
        """How the model's makers want it to be sampled, as far as they say."""
        return self._vocabulary.facts.generation

    @cached_property
    def special_names(self) -> Mapping[str, int]:
        """The special tokens that ``parse_special`` knows, by name."""
        return {name: special.token_id for name, special in self._vocabulary.names.items()}

    def encode(
        self, text: str, add_bos: bool | None = None, parse_special: bool = False, after: Sequence[int] = ()
    ) -> list[int]:
        """Give the token ids of ``text``.

        Args:
            text: Any text; lone surrogates, which have no bytes, become U+FFFD.
            add_bos: Whether to put ``bos_id`` first; None for what the model wants, at the end as well.
            parse_special: Whether names of special tokens in ``text`` become these tokens, unless ``GUARD`` is in
                them, which is left out. Only for text from templates: in text from users names stay text. A space
                behind a special token is the one that a ``.t`` file's score vocabulary puts there anyway.
            after: Token ids of the text that stands before this: some vocabularies put a space at the start alone, and
                some special tokens take the white space behind them with them.

        Raises:
            BadFile: The vocabulary proves unusable.
        """
        facts = self._vocabulary.facts
        ids = [self.bos_id] if (self.add_bos if add_bos is None else add_bos) and self.bos_id != NO_ID else []
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        place = Place.START
        if after:
            before = self._by_id.get(after[-1])
            place = Place.BEHIND_NAME if before else Place.INSIDE
            text = text.lstrip(WHITE_SPACE) if before and before.takes_right else text
        for part, special_id in self._split(text) if parse_special else [(text, None)]:
            ids += self._vocabulary.encode(part, place) if part else []
            ids += [] if special_id is None else [special_id]
            place = Place.BEHIND_NAME
        return [*ids, facts.eos_ids[0]] if facts.add_eos and add_bos is None and facts.eos_ids else ids

    def decode(self, token_ids: Iterable[int]) -> str:
        """Give the text of token ids, special tokens left out, invalid UTF-8 as U+FFFD."""
        from dllama.text.detokenizer import Detokenizer

        detokenizer = Detokenizer(self)
        return "".join([detokenizer.add(token_id) for token_id in token_ids]) + detokenizer.finish()

    def piece(self, token_id: int) -> bytes:
        """Give a token as the vocabulary writes it, special ones by name; empty outside the vocabulary."""
        return self._vocabulary.piece(token_id)

    def token_bytes(self, token_id: int, first: bool = False) -> bytes:
        """Give the bytes that a token adds to a text: none for special tokens and ids outside the vocabulary.

        Args:
            token_id: The token.
            first: Whether the text starts with it; then the space that some vocabularies put before every text is left
                out.
        """
        if self.is_special(token_id):
            return b""
        return self._vocabulary.text_bytes(token_id, first)

    def is_special(self, token_id: int) -> bool:
        """Whether a token steers the model and is no text: BOS, EOS, turn markers and the like."""
        return token_id in self._vocabulary.special_ids

    def summary(self) -> dict[str, str]:
        """Give the facts that distributed-llama prints when it loads a tokenizer, under its names and in its order."""
        regular = self.bos_id if self.bos_id != NO_ID else self.vocab_size
        return {
            "AddBos": str(int(self.add_bos)),
            "BosId": self._named(self.bos_id) if self.bos_id != NO_ID else "none",
            "EosId": " ".join(map(self._named, self.eos_ids)),
            "RegularVocabSize": str(regular),
            "SpecialVocabSize": str(self.vocab_size - regular),
        }

    def _named(self, token_id: int) -> str:
        return f"{token_id} ({self.piece(token_id).decode('utf-8', 'replace')})"

    @cached_property
    def _by_id(self) -> dict[int, SpecialName]:
        return {special.token_id: special for special in self._vocabulary.names.values()}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        """Match any special name, the longest where several begin alike."""
        names = sorted(self.special_names, key=len, reverse=True)
        # A guard behind the first letter of a name is inside it, unless the name has no other.
        parts = [re.escape(name) + (f"(?!{GUARD})" if len(name) == 1 else "") for name in names]
        return re.compile("|".join(parts) or "(?!)")  # which never matches

    def _split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Cut text at special names: pairs of ordinary text and the id of the name after it, None at the end."""
        begin = 0
        for match in self._special_pattern.finditer(text):
            special = self._vocabulary.names[match.group()]
            if match.start() < begin or (special.is_word and not _stands_alone(text, match)):
                continue
            part = text[begin : match.start()]
            yield self._ordinary(part.rstrip(WHITE_SPACE) if special.takes_left else part), special.token_id
            begin = match.end()
            if special.takes_right:
                begin = LEADING_SPACE.match(text, begin).end()  # type: ignore[union-attr] # matches nothing, too
        yield self._ordinary(text[begin:]), None

    def _ordinary(self, part: str) -> str:
        part = part.replace(GUARD, "")
        return part.removeprefix(" ") if self._vocabulary.drops_written_space else part


def _stands_alone(text: str, match: re.Match[str]) -> bool:
    """Whether no part of a word is beside a name."""
    beside = text[max(match.start() - 1, 0) : match.start()] + text[match.end() : match.end() + 1]
    return not any(unicodedata.category(each) in _IN_WORDS for each in beside)
