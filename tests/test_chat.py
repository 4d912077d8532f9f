"""``dllama chat`` through a pipe: what it prints, keeps, saves, and how its mistakes end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import Command, Files  # type: ignore[import-not-found]
from model_files import tiny_config, write_tiny_model, write_tiny_tokenizer  # type: ignore[import-not-found]

from dllama.engine import Engine, SamplingParams
from dllama.formats.session_file import read_session, read_token_ids

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>"
    "{{ message.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"
)
GREEDY = ["--temperature", "0", "--steps", "12"]


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Give a tiny model with a chat template and room for a few turns."""
    folder = tmp_path_factory.mktemp("talker")
    files = Files(folder / "tiny.m", folder / "tiny.t")
    write_tiny_model(files.model, tiny_config(max_seq_len=256))
    write_tiny_tokenizer(files.tokenizer, chat_template=TEMPLATE)
    return files


@pytest.fixture
def chat(dllama: Command, talker: Files) -> Command:
    def run(*arguments: object, stdin: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return dllama("chat", *talker.flags, *GREEDY, *arguments, stdin=stdin, env=env)

    return run


def answers(result: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def assert_fails(result: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    assert result.returncode == exit_code, result.stderr
    error = [line for line in result.stderr.splitlines() if not line.startswith("(")]  # without notes on the side
    assert len(error) == 1
    assert error[0].startswith("🚨 ")
    for word in words:
        assert word in error[0]


def test_bundled_model_answers_plainly(dllama: Command) -> None:
    result = dllama("chat", "--model", "demo", "--temperature", "0", stdin="hello\n")
    assert result.returncode == 0
    assert result.stderr == ""
    assert "story" in result.stdout
    assert result.stdout.count("\n") == 1
    assert "\x1b" not in result.stdout


def test_nothing_said(chat: Command) -> None:
    result = chat(stdin="")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_earlier_turns_are_kept_and_equal_a_fresh_run(chat: Command, talker: Files, tmp_path: Path) -> None:
    lines = "ab cd\nsecond message\nand a third\n"
    result = chat("--json", stdin=f"{lines}/save talk.csv\n")
    given = answers(result)
    for before, answer in pairwise(given):
        told = before["prompt_tokens"] + len(before["token_ids"])  # type: ignore[operator,arg-type]
        assert answer["cached_tokens"] in (told - 1, told)  # all but the last token, which was never computed
        assert answer["prompt_tokens"] > told  # type: ignore[operator]
    token_ids = read_token_ids(tmp_path / "talk.csv")
    for answer in given:
        first = answer["prompt_tokens"]
        assert isinstance(first, int)
        with Engine.load(talker.model, talker.tokenizer) as engine:
            fresh = engine.generate(token_ids[:first], SamplingParams(temperature=0, max_tokens=12))
            assert [output.token_id for output in fresh] == answer["token_ids"]


def test_end_of_turn_is_in_later_prompts(chat: Command, tmp_path: Path) -> None:
    chat(stdin="ab\ncd\n/save talk.csv\n")
    eot = 320 - 8 + 4
    assert read_token_ids(tmp_path / "talk.csv").count(eot) >= 3  # of two messages and of the first answer


def test_session_goes_on_as_if_never_stopped(chat: Command, dllama: Command, talker: Files, tmp_path: Path) -> None:
    whole = answers(chat("--json", "--temperature", "1", "--seed", "3", stdin="one\ntwo\nthree\n"))
    chat("--temperature", "1", "--seed", "3", stdin="one\n/save talk.json\n")
    loaded = ["chat", *talker.flags, "--json", "--load", "talk.json"]
    rest = answers(dllama(*loaded, stdin="two\n/save again.json\nthree\n"))
    assert [answer["token_ids"] for answer in whole[1:]] == [answer["token_ids"] for answer in rest]
    assert read_session(tmp_path / "again.json").num_answers == 2


def test_loading_in_the_chat_and_token_ids(chat: Command) -> None:
    whole = answers(chat("--json", stdin="one\ntwo\n"))
    chat(stdin="one\n/save talk.csv\n/save talk.json\n")
    for name in ("talk.csv", "talk.json"):
        rest = answers(chat("--json", stdin=f"something else\n/load {name}\ntwo\n"))
        assert rest[1]["token_ids"] == whole[1]["token_ids"]


def test_regenerated_answer_replaces_the_last(chat: Command, tmp_path: Path) -> None:
    given = answers(chat("--json", "--temperature", "2", "--seed", "1", stdin="one\n/regen\n/save talk.json\n"))
    assert given[0]["token_ids"] != given[1]["token_ids"]
    messages = read_session(tmp_path / "talk.json").messages
    assert [message.role for message in messages] == ["user", "assistant"]
    assert messages[1].content == given[1]["text"]


def test_commands_show_what_they_change(chat: Command) -> None:
    script = "/set temperature 0.25\n/set\n/system Be kind.\n/system\n/clear\nab\n/stats\n/help\n"
    result = chat(stdin=script)
    assert result.returncode == 0
    for shown in ("temperature        0.25", "system message: Be kind.", "context     ", "tokens/s", "/regen"):
        assert shown in result.stdout


def test_file_goes_with_the_next_message(chat: Command, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("from a file")
    chat(stdin="/read notes.txt\nread this\n/save talk.json\n")
    assert read_session(tmp_path / "talk.json").messages[0].content == "from a file\n\nread this"


def test_messages_of_several_lines(chat: Command, tmp_path: Path) -> None:
    chat(stdin='"""one\n  two\n"""\nthree\\\nfour\n/save talk.json\n')
    said = [m.content for m in read_session(tmp_path / "talk.json").messages if m.role == "user"]
    assert said == ["one\n  two", "three\nfour"]


def test_stop_texts_end_the_answer_and_are_not_shown(chat: Command) -> None:
    (free,) = answers(chat("--json", stdin="ab\n"))
    text = str(free["text"])
    stop = text[2:4]
    (stopped,) = answers(chat("--json", "--stop", stop, stdin="ab\n"))
    assert stopped["text"] == text[: text.index(stop)]
    assert stopped["finish_reason"] == "stop"


def test_context_that_is_full(chat: Command) -> None:
    script = "".join(f"{'ab ' * 20}{turn}\n" for turn in range(4))
    assert_fails(chat(stdin=script), 2, "/clear", "--context-shift")
    shifted = chat("--context-shift", "--json", stdin=script)
    assert len(answers(shifted)) == 4
    assert "oldest" in shifted.stderr


def test_message_longer_than_the_context(chat: Command) -> None:
    assert_fails(chat("--context-shift", stdin="x" * 300 + "\n"), 2, "shorter")


def test_bad_input(chat: Command, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("dear diary")
    assert_fails(chat("--load", "notes.json", stdin=""), 3, "notes.json", "session")
    assert_fails(chat(stdin="/load none.json\n"), 2, "none.json")
    assert_fails(chat(stdin="/save empty.json\n"), 2, "nothing was said")
    assert_fails(chat(stdin="ab\n/save notes.json\n"), 2, "choose another name")
    assert (tmp_path / "notes.json").read_text() == "dear diary"
    assert_fails(chat(stdin="/sav x\n"), 2, "did you mean /save")
    assert_fails(chat(stdin="/set tempo 1\n"), 2, "temperature")
    assert_fails(chat(stdin="/set topp 7\n"), 2, "topp", "0 to 1")
    assert_fails(chat(stdin="/regen\n"), 2, "no answer")
    assert_fails(chat("--chat-template", "lama3", stdin=""), 2, "llama3")
    assert_fails(chat("--load", "x.json", "--system", "y", stdin=""), 2, "--system")


def test_flags_win_over_a_loaded_session(chat: Command) -> None:
    chat("--temperature", "0.5", stdin="ab\n/save talk.json\n")
    shown = chat("--load", "talk.json", "--steps", "3", stdin="/set\n").stdout
    assert "steps              3\n" in shown
    assert "temperature        0.0\n" in shown  # of the fixture's own flags


def test_backslashes_within_a_message_stay(chat: Command, tmp_path: Path) -> None:
    chat(stdin='"""docker run \\\n  -it"""\none \\\ntwo\n/save talk.json\n')
    said = [m.content for m in read_session(tmp_path / "talk.json").messages if m.role == "user"]
    assert said == ["docker run \\\n  -it", "one \ntwo"]


def test_reader_that_goes_away(talker: Files) -> None:
    command = [sys.executable, "-m", "dllama", "chat", *talker.flags, "--steps", "20"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(b"ab\ncd\n", timeout=60)
    assert (process.returncode, err) == (141, b"")


def test_session_of_another_model(chat: Command, dllama: Command, tiny: Files) -> None:
    chat(stdin="ab\n/save talk.json\n")
    other = dllama("chat", "--model", "demo", "--load", "talk.json")
    assert_fails(other, 3, "talk.json", "tiny.m")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "2 seconds"),
        ("{{ ''.__class__.__mro__ }}", "template"),
        ("{% if %}", "template"),
        ("{{ raise_exception('only in pairs') }}", "only in pairs"),
    ],
)
def test_hostile_templates(dllama: Command, talker: Files, tmp_path: Path, template: str, words: str) -> None:
    write_tiny_tokenizer(tmp_path / "bad.t", chat_template=template)
    result = dllama("chat", "--model", talker.model, "--tokenizer", tmp_path / "bad.t", stdin="ab\n")
    assert_fails(result, 3, words)


def test_reasoning_is_hidden_on_demand(dllama: Command, talker: Files, tmp_path: Path) -> None:
    opened = TEMPLATE.replace("assistant<|end_header_id|>{%", "assistant<|end_header_id|><think>\n{%")
    write_tiny_tokenizer(tmp_path / "think.t", chat_template=opened)
    flags = ["chat", "--model", talker.model, "--tokenizer", tmp_path / "think.t", *GREEDY]
    assert dllama(*flags, stdin="ab\n").stdout.strip()
    assert dllama(*flags, "--think", "hide", stdin="ab\n").stdout.strip() == ""


def test_interrupt_in_a_pipe(talker: Files) -> None:
    command = [sys.executable, "-m", "dllama", "chat", *talker.flags, "--seed", "1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"ab\n")
        process.stdin.flush()
        process.stdout.read(1)  # it runs, and waits for the next message or answers this one
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_stop_texts_reach_over_a_context_shift(dllama: Command) -> None:
    flags = ["chat", "--model", "demo", "--temperature", "0", "--context-shift", "--json"]
    script = "hello\nand now?\n"
    free = answers(dllama(*flags, "--max-seq-len", "40", stdin=script))[1]
    stop = str(free["text"])[12:15]
    stopped = answers(dllama(*flags, "--max-seq-len", "40", "--stop", stop, stdin=script))[1]
    assert stopped["text"] == str(free["text"]).split(stop)[0]


def test_token_ids_that_the_vocabulary_lacks(chat: Command) -> None:
    assert_fails(chat("--stop-tokens", "999", stdin="ab\n"), 2, "stop-tokens", "999")
    assert_fails(chat("--logit-bias", "999:1", stdin="ab\n"), 2, "logit-bias", "999")
    assert_fails(chat(stdin="/set stop-tokens 999\n"), 2, "stop-tokens", "999")


def test_text_that_might_begin_a_stop_is_shown_in_the_end(chat: Command) -> None:
    (free,) = answers(chat("--json", stdin="ab\n"))
    (held,) = answers(chat("--json", "--stop", f"{str(free['text'])[-1]}never", stdin="ab\n"))
    assert held["text"] == free["text"]
