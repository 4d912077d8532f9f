"""Line breaks between words, and nothing that steers the terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dllama.cli.chat.wrapping import WordWrapper, printable


def wrap(pieces: list[str], width: int = 10) -> str:
    out: list[str] = []
    wrapper = WordWrapper(out.append, lambda: width)
    for piece in pieces:
        wrapper.add(piece)
    wrapper.flush()
    return "".join(out)


def test_words_stay_whole() -> None:
    assert wrap(["The quick brown fox"]) == "The quick\nbrown fox"


def test_word_is_shown_with_the_blank_after_it() -> None:
    out: list[str] = []
    wrapper = WordWrapper(out.append, lambda: 80)
    wrapper.add("Hel")
    assert out == []
    wrapper.add("lo ")
    assert "".join(out) == "Hello "


def test_code_is_left_as_it_is() -> None:
    code = "```\nfor line in lines_of_a_long_name: print(line)\n```\n"
    assert wrap([code]) == code
    assert wrap([code + "and then words"]) == code + "and then \nwords"


def test_word_longer_than_the_line_is_shown_while_it_comes() -> None:
    out: list[str] = []
    wrapper = WordWrapper(out.append, lambda: 10)
    wrapper.add("x" * 25)
    assert sum(map(len, "".join(out).split())) >= 18


def test_scripts_without_blanks_break_anywhere() -> None:
    lines = wrap(["日本語の長い文章です"]).split("\n")
    assert max(len(line) for line in lines) <= 5
    assert "".join(lines) == "日本語の長い文章です"


@given(st.text("ab c\n日`", max_size=80), st.integers(1, 7))
def test_only_line_ends_are_added_and_cuts_do_not_matter(text: str, size: int) -> None:
    wrapped = wrap([text])
    assert wrapped == wrap([text[begin : begin + size] for begin in range(0, len(text), size)])
    assert "".join(wrapped.split()) == "".join(text.split())


def test_escape_sequences_are_made_harmless() -> None:
    assert printable("a\x1b[2Jb\x07\n", keep="\n") == "a�[2Jb�\n"


def test_text_of_all_languages_is_shown_as_it_is() -> None:
    for text in (
        "« Bonjour\u00a0»",
        "10\u202f000",
        "日本\u3000語",
        "👨\u200d👩\u200d👧",
        "न\u200dक",
        "soft\u00adhyphen",
    ):
        assert printable(text) == text
    assert printable("a\u202eb\u2028c\x85") == "a�b�c�"
