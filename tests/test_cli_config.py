"""Flags that are set in the environment and in the configuration file."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dllama.cli import commands, main
from dllama.cli.config_file import parse as parse_toml
from dllama.errors import BadFile, DllamaError, UsageError

FILES = ["--model", "m", "--tokenizer", "t"]
PROMPT = ["--prompt", "x"]


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's file, not there yet, in an environment that sets nothing."""
    for name in os.environ:
        if name.startswith("DLLAMA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "dllama"
    folder.mkdir()
    return folder / "config.toml"


def parse(*arguments: str, command: str = "inference") -> argparse.Namespace:
    return commands.parse(command, list(arguments))[1]


def fails(kind: type[DllamaError], *arguments: str, command: str = "inference") -> str:
    with pytest.raises(DllamaError) as caught:
        parse(*arguments, command=command)
    assert type(caught.value) is kind
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_command_line_goes_before_environment_before_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(*FILES, *PROMPT).top_k == 0
    config.write_text("top-k = 1")
    assert parse(*FILES, *PROMPT).top_k == 1
    config.write_text("top-k = 1\n[inference]\ntop_k = 2")
    assert parse(*FILES, *PROMPT).top_k == 2
    monkeypatch.setenv("DLLAMA_TOP_K", "3")
    assert parse(*FILES, *PROMPT).top_k == 3
    assert parse(*FILES, *PROMPT, "--top-k", "4").top_k == 4
    assert parse(*FILES, *PROMPT, "--top-k=0").top_k == 0  # the default, said aloud


def test_required_flags_may_be_set_elsewhere(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--model" in fails(UsageError, *PROMPT)
    config.write_text('tokenizer = "t"\n[inference]\nmodel = "m"')
    monkeypatch.setenv("DLLAMA_PROMPT", "-- hello")
    args = parse()
    assert (args.model, args.tokenizer, args.prompt) == ("m", "t", "-- hello")


def test_empty_variables_are_none(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("nthreads = 3")
    monkeypatch.setenv("DLLAMA_NTHREADS", "")
    assert parse(*FILES, *PROMPT).nthreads == 3


def test_variables_that_are_no_flags_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ISA", "HUGE_PAGES", "DEBUG", "MODELS", "NOT_A_FLAG", "WORKERS"):
        monkeypatch.setenv(f"DLLAMA_{name}", "whatever")
    assert parse(*FILES, *PROMPT).prompt == "x"


@pytest.mark.parametrize("word", ["1", "true", "Yes", "ON"])
def test_switches_in_the_environment(word: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLLAMA_JSON", word)
    assert parse(*FILES, *PROMPT).json is True
    assert parse("-m", "x", command="bench").output == "json"
    config.write_text("json = true")
    monkeypatch.setenv("DLLAMA_JSON", "off")
    assert parse(*FILES, *PROMPT).json is False


def test_switches_in_the_file(config: Path) -> None:
    config.write_text("json = true\nignore-eos = false")
    args = parse(*FILES, *PROMPT)
    assert (args.json, args.ignore_eos) == (True, False)
    assert parse("-m", "x", command="bench").output == "json"
    assert parse("-m", "x", "-o", "csv", command="bench").output == "csv"


def test_stronger_of_two_flags_for_one_thing_wins(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("json = true")
    monkeypatch.setenv("DLLAMA_OUTPUT", "csv")
    assert parse("-m", "x", command="bench").output == "csv"


def test_lists(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('n-prompt = [16, 32]\nn-gen = 8\nlogit-bias = ["1:2", "3:-4"]\n[bench]\nmodel = ["a", "b"]')
    bench = parse(command="bench")
    assert (bench.n_prompt, bench.n_gen, bench.model) == ([16, 32], [8], ["a", "b"])
    assert parse(*FILES, *PROMPT).logit_bias == [(1, 2.0), (3, -4.0)]
    monkeypatch.setenv("DLLAMA_N_PROMPT", "5,6")
    monkeypatch.setenv("DLLAMA_LOGIT_BIAS", "7:-8 '9:1'")
    bench = parse("-m", "c", "-n", "1", command="bench")
    assert (bench.n_prompt, bench.n_gen, bench.model) == ([5, 6], [1], ["c"])  # values are not joined to others
    assert parse(*FILES, *PROMPT).logit_bias == [(7, -8.0), (9, 1.0)]
    assert parse(*FILES, *PROMPT, "--logit-bias", "1:1").logit_bias == [(1, 1.0)]


def test_groups_of_which_one_may_be_given(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('prompt = "from the file"')
    assert parse(*FILES).prompt == "from the file"
    args = parse(*FILES, "--prompt-file", "f")
    assert (args.prompt, args.prompt_file) == (None, "f")
    monkeypatch.setenv("DLLAMA_PROMPT_FILE", "g")
    args = parse(*FILES)
    assert (args.prompt, args.prompt_file) == (None, "g")
    args = parse(*FILES, *PROMPT)
    assert (args.prompt, args.prompt_file) == ("x", None)
    monkeypatch.setenv("DLLAMA_PROMPT", "p")
    assert fails(UsageError, *FILES) == "DLLAMA_PROMPT: expected it or DLLAMA_PROMPT_FILE, found both"
    monkeypatch.delenv("DLLAMA_PROMPT")
    monkeypatch.delenv("DLLAMA_PROMPT_FILE")
    config.write_text('prompt = "p"\nprompt_file = "f"')
    assert "key 'prompt': expected it or 'prompt-file', found both" in fails(BadFile, *FILES)
    config.write_text('prompt = "p"\n[inference]\nprompt-file = "f"')
    assert parse(*FILES).prompt_file == "f"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("NTHREADS", "x", "expected a whole number from 1 to 1024, found 'x'"),
        ("TEMPERATURE", "hot", "expected a number from 0 to 100, found 'hot'"),
        ("BUFFER_FLOAT_TYPE", "q4", "expected one of f32, f16, q80, found 'q4'"),
        ("JSON", "maybe", "expected 1, true, yes or on, or 0, false, no or off, found 'maybe'"),
        ("LOGIT_BIAS", "1:2 nonsense", "found 'nonsense'"),
        ("LOGIT_BIAS", "'1:2", "a quote that does not end"),
        ("LOGIT_BIAS", " ", "expected at least one value, found none"),
    ],
)
def test_errors_name_the_variable(name: str, text: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"DLLAMA_{name}", text)
    message = fails(UsageError, *FILES, *PROMPT)
    assert message.startswith(f"DLLAMA_{name}: expected ")
    assert words in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nthreads = 0", "key 'nthreads': expected a whole number from 1 to 1024, found 0"),
        ("nthreads = '4'", "key 'nthreads': expected a number without quotes, found '4'"),
        ("nthreads = 4.5", "key 'nthreads': expected a whole number from 1 to 1024, found 4.5"),
        ("nthreads = true", "key 'nthreads': expected a whole number from 1 to 1024, found true"),
        ("nthreads = [4]", "key 'nthreads': expected one value, found a list of 1"),
        ("nthreads = 2020-01-01", "key 'nthreads': expected a whole number from 1 to 1024, found 2020-01-01"),
        (f"nthreads = 0x1{'0' * 5000}", "a number of too many digits"),
        (f"nthreads = '{'9' * 5000}'", "a text of 5000 characters"),
        ("temperature = nan", "key 'temperature': expected a number from 0 to 100, found nan"),
        ("[inference]\nmodel = 5", "key 'model' in [inference]: expected text in quotes, found 5"),
        ("[inference]\nmodel.x = 5", "key 'model' in [inference]: expected one value, found a table"),
        ("prompt = true", "key 'prompt': expected text in quotes, found true"),
        ("json = 1", "key 'json': expected true or false, found 1"),
        ("json = 'yes'", "key 'json': expected true or false, found 'yes'"),
        ("buffer-float-type = 'q4'", "expected one of f32, f16, q80, found 'q4'"),
        ("logit-bias = []", "key 'logit-bias': expected at least one value, found none"),
        ("logit-bias = [['1:2']]", "key 'logit-bias': expected a value, found a list of 1"),
        ("model = ''", "key 'model': expected a file, found ''"),
        ("nthreds = 1", "key 'nthreds': expected the name of a flag, found no such flag; did you mean nthreads?"),
        ("gpu-index = 'a'", "key 'gpu-index': expected the name of a flag, found no such flag"),
        ("help = true", "key 'help': expected the name of a flag, found no such flag"),
        ("[inference]\nn-prompt = 1", "key 'n-prompt' in [inference]: expected the name of a flag"),
        ("[chat]\ntemprature = 1", "key 'temprature' in [chat]: expected the name of a flag, found no such flag; did"),
        ("[inferense]", "table [inferense]: expected a table of one of the commands chat, "),
        ("top_k = 1\ntop-k = 2", "key 'top-k': expected it or 'top_k', found both"),
        ("top-k = 1\n\ntop-k = 2", "line 3: expected TOML, found a mistake: "),
        ("top-k = ", "line 1: expected TOML, found a mistake: "),
        ('prompt = """', "line 1: expected TOML, found a mistake: "),
        (f"x = {'[' * 100_000}", "expected TOML, found lists or tables nested too deeply"),
        (f"top-k = {'9' * 5000}", "expected TOML, found a mistake: "),
    ],
)
def test_errors_name_the_key(text: str, words: str, config: Path) -> None:
    config.write_text(text)
    flags = [flag for flag in [*FILES, *PROMPT] if flag[:2] == "--" and flag[2:] not in text]
    message = fails(BadFile, *(word for flag in flags for word in (flag, "x")))
    assert message.startswith(f"{config}: ")
    assert words in message
    assert len(message) < 400 + len(str(config))


def test_keys_of_other_commands_are_theirs(config: Path) -> None:
    config.write_text('n-prompt = "not looked at here"\nsystem = "too"\n[bench]\nn-gen = 1\n[models]\nall = true')
    assert parse(*FILES, *PROMPT).prompt == "x"
    assert parse(command="models list").all is True
    assert parse("demo", command="models show").name == "demo"


def test_command_line_is_checked_first(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("nonsense")
    assert "unknown flag" in fails(UsageError, "--nonsense")
    assert "--nthreads" in fails(UsageError, "--nthreads", "x")
    assert "CPUs only" in fails(UsageError, "--gpu-index", "0")
    assert main(["inference", "--help"]) == 0
    assert "DLLAMA_PROMPT" in capsys.readouterr().out
    assert main(["completion", "bash"]) == 0  # it has nothing to set, and runs when a shell starts


def test_values_that_the_command_line_gives_are_not_looked_up(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLLAMA_NTHREADS", "x")
    config.write_text("top-k = 'x'")
    assert parse(*FILES, *PROMPT, "--nthreads", "2", "--top-k", "3").nthreads == 2


def test_named_file(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("top-k = 1")
    other = tmp_path / "other.toml"
    monkeypatch.setenv("DLLAMA_CONFIG", str(other))
    assert fails(UsageError, *FILES, *PROMPT) == f"DLLAMA_CONFIG: expected a configuration file, found no file {other}"
    other.write_text("top-k = 2")
    assert parse(*FILES, *PROMPT).top_k == 2
    monkeypatch.setenv("DLLAMA_CONFIG", os.devnull)
    assert parse(*FILES, *PROMPT).top_k == 0


def test_files_that_are_none(config: Path, tmp_path: Path) -> None:
    def message(kind: type[DllamaError] = BadFile) -> str:
        return fails(kind, *FILES, *PROMPT)

    config.mkdir()
    assert message() == f"{config}: expected a configuration file, found a directory"
    config.rmdir()
    os.mkfifo(config)
    assert message() == f"{config}: expected a configuration file, found a pipe"
    config.unlink()
    config.write_bytes(b"top-k = 1 # \xff")
    assert message() == f"{config}: byte 12: expected UTF-8 text, found byte 0xFF"
    config.write_bytes(b"#" * ((1 << 20) + 1))
    assert message() == f"{config}: size: expected at most 1048576 bytes, found 1048577"
    config.write_bytes(b"")
    assert parse(*FILES, *PROMPT).top_k == 0
    config.unlink()
    config.symlink_to(tmp_path / "nowhere")
    assert parse(*FILES, *PROMPT).top_k == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read(config: Path) -> None:
    config.write_text("top-k = 1")
    config.chmod(0)
    assert "cannot open this configuration file" in fails(UsageError, *FILES, *PROMPT)


def test_text_keeps_what_toml_says() -> None:
    file = parse_toml("x", 'prompt = "ä\\n\\"\\u00e4"')
    assert file.shared == {"prompt": 'ä\n"ä'}


def test_exit_codes_of_a_process(config: Path, tmp_path: Path) -> None:
    def run(**env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dllama", "models", "list"]
        return subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, **env}, cwd=tmp_path)

    config.write_text("jsn = true")
    result = run()
    assert result.returncode == 3
    assert (
        result.stderr
        == f"🚨 {config}: key 'jsn': expected the name of a flag, found no such flag; did you mean json?\n"
    )
    assert run(DLLAMA_CONFIG="/gone").returncode == 2
    config.write_text("json = true")
    assert run(DLLAMA_JSON="oui").returncode == 2
    result = run()
    assert result.returncode == 0
    assert result.stdout.startswith('{"models": [')
