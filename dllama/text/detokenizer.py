"""Token ids to text, one token at a time: never half a character."""

from __future__ import annotations

import codecs

from dllama.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns the tokens of one text into pieces of it, as they come.

    All pieces together are the text that all bytes together decode to: a character whose bytes come in several tokens
    is given with the last of them, and bytes that are no UTF-8 become U+FFFD.

    Args:
        tokenizer: The vocabulary.
        continues: Whether the tokens follow others, e.g. those of a prompt, so that a space before the first word is
            kept in every vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, continues: bool = False) -> None:
        self._tokenizer, self._at_start = tokenizer, not continues
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """Take the next token; give the text that is now certain, often empty. Special tokens give none."""
        raw = self._tokenizer.token_bytes(token_id, first=self._at_start)
        if not self._tokenizer.is_special(token_id):
            self._at_start = False
        return self._decoder.decode(raw)

    def finish(self) -> str:
        """Give what is left of a character that never became whole, as U+FFFD; then start a new text."""
        self._at_start = True
        return self._decoder.decode(b"", final=True)
