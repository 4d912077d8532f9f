"""``dllama chat`` as a person meets it: on a terminal of 80 columns."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import Terminal  # type: ignore[import-not-found]

from dllama.formats.session_file import Session, read_session

Start = Callable[..., Terminal]
STORY = "tell me a story about a fox\r"


def rescued(tmp_path: Path) -> Session:
    (path,) = (tmp_path / "state" / "dllama").glob("chat-*.json")
    assert path.stat().st_mode & 0o077 == 0
    return read_session(path)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def start(*flags: str, env: dict[str, str] | None = None) -> Terminal:
        home = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "xterm-256color"}
        command = [sys.executable, "-m", "dllama", "chat", "--model", "demo", "--seed", "1", *flags]
        return Terminal(command, {**os.environ, **home, **(env or {})}, str(tmp_path))

    return start


def test_a_conversation(start: Start, tmp_path: Path) -> None:
    with start("--temperature", "0") as terminal:
        terminal.wait_for_prompt(1)
        assert "/help lists commands" in terminal.text
        terminal.send("hello\r")
        terminal.wait_for_prompt(2)
        assert "story" in terminal.text
        terminal.send("/stats\r")
        terminal.wait_for("measured now")
        terminal.wait_for_prompt(3)
        terminal.send("/save talk.json\r")
        terminal.wait_for("saved")
        terminal.wait_for_prompt(4)
        terminal.send("\x04")
        assert terminal.wait_for_end() == 0
    said = [message.content for message in read_session(tmp_path / "talk.json").messages]
    assert said[0] == "hello"
    with start("--load", "talk.json") as terminal:
        terminal.wait_for("2 messages")
        terminal.wait_for_prompt(1)
        terminal.send("/exit\r")
        assert terminal.wait_for_end() == 0


def test_words_are_not_cut_at_the_edge(start: Start) -> None:
    with start() as terminal:
        terminal.wait_for_prompt(1)
        terminal.send(STORY)
        terminal.wait_for_prompt(2)
        lines = terminal.text.split("fox\n", maxsplit=1)[1].split("\n\n> ")[0].split("\n")
    assert len(lines) > 5
    assert all(len(line) < 80 for line in lines)
    assert all(line[-1] not in ("-", " ") for line in lines if line)


@pytest.mark.parametrize("key", ["\x03", " "])
def test_a_key_stops_the_answer_and_keeps_the_conversation(start: Start, key: str) -> None:
    # No end of turn and no likely word, slowly: the answer would fill the whole context.
    flags = ["--temperature", "100", "--topp", "1", "--logit-bias", "2047:-1000", "2044:-1000"]
    with start(*flags, env={"DLLAMA_ISA": "generic"}) as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("hello\r")
        terminal.wait(lambda: len("".join(terminal.text.split("hello\n")[1:])) > 40, "answer")
        terminal.send(key)
        terminal.wait_for_prompt(2)
        terminal.send("/stats\r")
        terminal.wait_for("2 messages")
        terminal.wait_for_prompt(3)
        assert "end of context" not in terminal.text
        terminal.send("/exit\r")
        assert terminal.wait_for_end() == 0


def test_interrupt_at_the_prompt_forgets_the_line(start: Start) -> None:
    with start() as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("not this")
        terminal.send("\x03")
        terminal.wait_for("Ctrl-D or /exit ends the chat")
        terminal.wait_for_prompt(2)
        terminal.send("\x04")
        assert terminal.wait_for_end() == 0


def test_lines_history_and_completion(start: Start, tmp_path: Path) -> None:
    with start("--steps", "3") as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("two\x1b\rlines\r")  # Alt-Enter
        terminal.wait_for(". lines")
        terminal.wait_for_prompt(2)
        terminal.send("\x1b[200~pasted\rtext\x1b[201~\r")
        terminal.wait_for(". text")
        terminal.wait_for_prompt(3)
        terminal.send("/sta\t")
        terminal.wait_for("> /stats")
        terminal.send("\r")
        terminal.wait_for("context     ")
        terminal.wait_for_prompt(4)
        terminal.send("/save talk.json\r")
        terminal.wait_for("saved")
        terminal.send("/exit\r")
        assert terminal.wait_for_end() == 0
    said = [message.content for message in read_session(tmp_path / "talk.json").messages]
    assert (said[0], said[2]) == ("two\nlines", "pasted\ntext")
    history = tmp_path / "state" / "dllama" / "chat_history"
    assert history.stat().st_mode & 0o077 == 0
    with start() as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("\x1b[A")  # up
        terminal.wait_for("> /exit")
        terminal.send("\r")
        assert terminal.wait_for_end() == 0


def test_errors_are_one_line_and_the_chat_goes_on(start: Start) -> None:
    with start() as terminal:
        terminal.wait_for_prompt(1)
        for number, command in enumerate(["/nonsense", "/load none.json", "/set topp 9", "/regen"]):
            terminal.send(f"{command}\r")
            terminal.wait(lambda count=number: terminal.text.count("🚨") > count, "error")
            terminal.wait_for_prompt(number + 2)
        terminal.send("/exit\r")
        assert terminal.wait_for_end() == 0


def test_file_that_does_not_fit_is_left_out_of_the_next_message(start: Start, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 2000)
    with start() as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("/read long.txt\r")
        terminal.wait_for("goes with your next message")
        terminal.wait_for_prompt(2)
        terminal.send("hello\r")
        terminal.wait_for("is left out now")
        terminal.wait_for_prompt(3)
        terminal.send("\r")
        terminal.wait_for("story?")
        terminal.wait_for_prompt(4)
        terminal.send("/exit\r")
        assert terminal.wait_for_end() == 0


def test_full_context_offers_to_clear(start: Start) -> None:
    with start("--max-seq-len", "64", "--steps", "4") as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("word " * 60 + "\r")
        terminal.wait_for("/clear")
        terminal.wait_for_prompt(2)
        terminal.send("/clear\r")
        terminal.wait_for("a new conversation")
        terminal.wait_for_prompt(3)
        terminal.send("hello\r")
        terminal.wait_for_prompt(4)
        assert "/set steps 0" in terminal.text
        terminal.send("/exit\r")
        assert terminal.wait_for_end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_conversation_survives_a_signal(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    with start() as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("hello\r")
        terminal.wait_for_prompt(2)
        terminal.process.kill(number)
        assert terminal.wait_for_end() == 128 + number
        assert "--load" in terminal.text
    assert rescued(tmp_path).messages[0].content == "hello"


def test_answer_so_far_survives_a_signal(start: Start, tmp_path: Path) -> None:
    with start("--logit-bias", "2047:-1000", "2044:-1000", env={"DLLAMA_ISA": "generic"}) as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("hello\r")
        terminal.wait(lambda: len("".join(terminal.text.split("hello\n")[1:])) > 40, "answer")
        terminal.process.kill(signal.SIGTERM)
        assert terminal.wait_for_end() == 128 + signal.SIGTERM
    asked, answered = rescued(tmp_path).messages
    assert asked.content == "hello"
    assert len(answered.content) > 20


def test_conversation_survives_a_closed_terminal(start: Start, tmp_path: Path) -> None:
    with start() as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("hello\r")
        terminal.wait_for_prompt(2)
        terminal.hang_up()
        end = time.monotonic() + 30
        while not list((tmp_path / "state" / "dllama").glob("chat-*.json")):
            assert time.monotonic() < end
            time.sleep(0.05)
    assert rescued(tmp_path).messages[0].content == "hello"


def test_way_on_that_is_told_leads_there(start: Start, tmp_path: Path) -> None:
    flags = ("--chat-template", "chatml", "--max-seq-len", "512", "--kv-type", "q80", "--steps", "4")
    with start(*flags) as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("hello\r")
        terminal.wait_for_prompt(2)
        terminal.process.kill(signal.SIGTERM)
        terminal.wait_for_end()
        told = terminal.text.replace("\n", "").split("go on with: dllama chat ")[1]
    assert "--kv-type=q80" in shlex.split(told)
    with start(*shlex.split(told)) as terminal:
        terminal.wait_for("2 messages")
        assert "512 tokens" in terminal.text
        assert "chatml" in terminal.text


def test_chat_that_cannot_be_saved_says_so(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with start(env={"XDG_STATE_HOME": str(tmp_path / "file")}) as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("hello\r")
        terminal.wait_for_prompt(2)
        terminal.process.kill(signal.SIGTERM)
        assert terminal.wait_for_end() == 128 + signal.SIGTERM
        assert "could not be saved" in terminal.text.replace("\n", " ")


@pytest.mark.parametrize("delay", [0, 0.01, 0.03, 0.1])
def test_interrupt_at_any_moment_keeps_the_chat(start: Start, delay: float) -> None:
    with start() as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("hello\r")
        time.sleep(delay)
        terminal.send("\x03")
        terminal.wait_for_prompt(2)
        terminal.send("\x15/stats\r")
        time.sleep(delay)
        terminal.send("\x03")
        terminal.wait_for("context     ")
        terminal.wait(lambda: terminal.last_line == ">", "prompt")
        terminal.send("/exit\r")
        assert terminal.wait_for_end() == 0


def test_keys_typed_during_an_answer_wait_for_the_next_message(start: Start) -> None:
    with start("--logit-bias", "2047:-1000", "2044:-1000", env={"DLLAMA_ISA": "generic"}) as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("hello\r")
        terminal.wait(lambda: len("".join(terminal.text.split("hello\n")[1:])) > 40, "answer")
        terminal.send("nexx\x7ft\x1b[Aone\r")
        terminal.send("\x03")
        terminal.wait(lambda: terminal.last_line.startswith("> "), "prompt")
        assert terminal.last_line == "> nextone"
        terminal.send("\x03")
        terminal.wait_for("Ctrl-D or /exit")
        terminal.send("/exit\r")
        assert terminal.wait_for_end() == 0


def test_line_that_was_ended_during_an_answer_is_the_next_message(start: Start) -> None:
    with start(env={"DLLAMA_ISA": "generic"}) as terminal:
        terminal.wait_for_prompt(1)
        terminal.send(STORY)
        terminal.wait(lambda: len("".join(terminal.text.split("fox\n")[1:])) > 40, "answer")
        terminal.send("/exit\r")
        assert terminal.wait_for_end() == 0
        assert "> /exit" in terminal.text


def test_nothing_steers_the_terminal(start: Start) -> None:
    with start("--system", "evil\x1b]0;title\x07\x9b31m") as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("/system\r")
        terminal.wait_for("evil")
        assert "\x1b]0;title" not in terminal.raw
        assert "\x9b31m" not in terminal.raw


def test_colored_text_that_is_typed_is_harmless(start: Start) -> None:
    with start() as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("\x1b[31mred\r")
        terminal.wait_for_prompt(2)
        assert "Exception" not in terminal.text
        assert "> red" in terminal.text


def test_odd_files_leave_the_chat_alone(start: Start) -> None:
    with start() as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("hello\r")
        terminal.wait_for_prompt(2)
        for number, command in enumerate(["/read ~nobody-here/x", f"/save {'n' * 300}", "/load /", "/save /none/x"]):
            terminal.send(f"{command}\r")
            terminal.wait(lambda count=number: terminal.text.count("🚨") > count, "error")
            terminal.wait(lambda: terminal.last_line == ">", "prompt")
        terminal.send("/exit\r")
        assert terminal.wait_for_end() == 0


def test_terminal_without_a_cursor(start: Start) -> None:
    with start(env={"TERM": "dumb"}) as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("hello\n")
        terminal.wait_for_prompt(2)
        assert "\x1b" not in terminal.raw
        terminal.send("\x04")
        assert terminal.wait_for_end() == 0


def test_no_color(start: Start) -> None:
    with start(env={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for_prompt(1)
        terminal.send("/clear\r")
        terminal.wait_for("a new conversation")
        assert "\x1b[2m" not in terminal.raw
        terminal.send("\x04")
        assert terminal.wait_for_end() == 0
