"""What ``Tokenizer`` asks of a vocabulary, whatever file it came from, and which added tokens are more than text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from dllama.errors import BadFile
from dllama.formats.generation_config import GenerationDefaults
from dllama.formats.t_file import TokenizerData

NO_ID = -1  # for a vocabulary without a BOS token
# What ends an answer, by name.
ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<\uff5cend▁of▁sentence\uff5c>")
# What Unicode calls white space; Python's \s takes four separators more.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
LEADING_SPACE = re.compile(f"[{WHITE_SPACE}]*")
# Tokens that look like these are silent: they steer the model and no reader wants them.
_SILENT = re.compile(r"<\|.+\|>|<\uff5c.+\uff5c>|\s*</?s>\s*|<unk>|<pad>", re.DOTALL)
# Of the tokens that a tokenizer adds without calling them special, these are no text either, though readers may want
# them: <think>, [INST], <tool_call>. Gemma's vocabulary has the tags of HTML, which are.
_STEERING = re.compile(r"<\|.+\|>|<\uff5c.+\uff5c>|\[/?[A-Z_]+\]|</?[\w.\-@ ]+>", re.DOTALL)
_HTML = re.compile(
    r"</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code|p|a|br|ul|ol|li)>"
)


class Place(Enum):
    """Where a piece of ordinary text stands; vocabularies put a space before some and not before others."""

    START = auto()  # nothing is before it
    BEHIND_NAME = auto()  # a special token is
    INSIDE = auto()  # other ordinary text is


@dataclass(frozen=True, slots=True)
class SpecialName:
    """How a special token is found in the text of a template.

    Attributes:
        token_id: The token.
        takes_left: Whether it takes the white space before it with it, and ``takes_right`` that behind it.
        takes_right: See ``takes_left``.
        is_word: Whether it only counts where no letter, digit or underscore is beside it.
    """

    token_id: int
    takes_left: bool = False
    takes_right: bool = False
    is_word: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What the files of a tokenizer say beside its pieces.

    Attributes:
        bos_id: The token before every text, or ``NO_ID``.
        eos_ids: The tokens that end an answer, none twice.
        add_bos: Whether a text starts with ``bos_id``.
        add_eos: Whether a text ends with the first of ``eos_ids``.
        chat_templates: The model's Jinja texts, untrusted: ``"default"``, and others such as ``"tool_use"``.
        token_texts: What templates know by names such as ``"eos_token"``; None: the file does not say.
        generation: How the model's makers want it to be sampled.
    """

    bos_id: int
    eos_ids: tuple[int, ...]
    add_bos: bool
    add_eos: bool = False
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    token_texts: Mapping[str, str] | None = None
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)


class Vocabulary(Protocol):
    """A vocabulary of some kind; ids outside it are asked for too, and have no bytes."""

    @property
    def facts(self) -> Facts:
        """What goes with it."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    @property
    def least_rows(self) -> int:
        """Tokens that a model must have; some that were added later are not in all models (Gemma 3's images)."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that steer the model and are no text."""

    @property
    def names(self) -> Mapping[str, SpecialName]:
        """Tokens that a template may write and a user may not, by name."""

    @property
    def drops_written_space(self) -> bool:
        """Whether one space behind a special token, and at the start, is the one that encoding puts there anyway."""

    def piece(self, token_id: int) -> bytes:
        """Give a token as the vocabulary writes it."""

    def text_bytes(self, token_id: int, is_first: bool) -> bytes:
        """Give the bytes that a token which is not special adds to a text, ``is_first`` at its start."""

    def encode(self, text: str, place: Place) -> list[int]:
        """Give the ids of ordinary text, in which no name is special."""

    def to_t_data(self) -> TokenizerData:
        """Give the vocabulary as a ``.t`` file holds it.

        Raises:
            UnsupportedModel: Such a file cannot hold it, or would give other ids.
        """


def is_silent(name: str) -> bool:
    """Whether a token of this name steers the model and is no text, whatever the vocabulary calls it."""
    return _SILENT.fullmatch(name) is not None


def is_name(name: str, is_special: bool) -> bool:
    """Whether an added token is a name that only templates may write; others are text: spaces, tags of HTML."""
    return is_special or (_STEERING.fullmatch(name) is not None and _HTML.fullmatch(name) is None)


def bad_vocabulary(path: str, error: ValueError) -> BadFile:
    """Turn an error ``"<expected>, found <what>"`` into the one that names the file."""
    expected, found = str(error).split(", found ", 1)
    return BadFile(path, "vocabulary", expected, found)
