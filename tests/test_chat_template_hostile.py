"""Stored templates are untrusted: whatever they do ends in one line, and the process that renders them is alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from chat_vocabularies import rank_vocabulary  # type: ignore[import-not-found]

from dllama.text import template_renderer
from dllama.text.chat_template import ChatTemplate, Message, TemplateError, choose_template

HELLO = [Message("user", "Hello")]


def stored(text: str) -> ChatTemplate:
    return choose_template(rank_vocabulary("<s>", "</s>", chat_template=text))


def problem(template: ChatTemplate, messages: list[Message] = HELLO) -> str:
    """Give the one line that a rendering ends in."""
    with pytest.raises(TemplateError) as error:
        template.render(messages)
    text = str(error.value)
    assert error.value.exit_code == 3
    assert text.isprintable()
    assert len(text) < 500
    assert text.startswith("the tokenizer's chat template ")
    return text


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_renderer, "_RENDER_S", 0.3)


@pytest.fixture(scope="module")
def good() -> Iterator[ChatTemplate]:
    with stored("{{ messages[0].content }}") as template:
        template.render(HELLO)
        yield template


def child_of(template: ChatTemplate) -> psutil.Process:
    """Find the process that renders ``template``."""
    before = {child.pid for child in psutil.Process().children()}
    template.render(HELLO)
    (child,) = [child for child in psutil.Process().children() if child.pid not in before]
    return child


MISBEHAVED = {
    "{{ ''.__class__ }}": "'__class__' of type str",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "'__class__' of type str",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}": "'__init__' of type type",
    "{{ messages | attr('__class__') }}": "__class__",
    "{{ (messages | map('upper')).gi_frame }}": "gi_frame",
    "{{ '%s' | format(messages) }}{{ '{0.__class__}'.format(1) }}": "__class__",
    "{{ raise_exception.__globals__ }}": "__globals__",
    "{{ messages.append(1) }}": "does what none may",
    "{{ messages[0].update({'content': 'x'}) }}": "does what none may",
    "{{ messages.clear() }}": "does what none may",
    "{% set messages[0].content = 'x' %}": "is broken in line 1",
    "{% include '/etc/passwd' %}": "TypeError",
    "{% import 'os' as os %}": "TypeError",
    "{% extends 'base' %}": "TypeError",
    "{{ nothing.here }}": "'nothing' is undefined",
    "{{ nothing() }}": "'nothing' is undefined",
    "{{ messages[9].content }}": "no element 9",
    "{{ 1 / 0 }}": "ZeroDivisionError",
    "{{ 1 + 'a' }}": "TypeError",
    "{{ messages[0].content.encode('utf-16').decode('ascii') }}": "UnicodeDecodeError",
    "{{ '\\ud800' }}": "half characters",
    "{{ '\\ud800'.encode() }}": "UnicodeEncodeError",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}": "calls itself too often",
    "{{ 'a' * 10 ** 10 }}": "256 MiB of memory",
    "{{ range(10 ** 12) | list }}": "OverflowError",
    "{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}": "writes more than 16777216 characters",
    "{{ raise_exception('no\\nsystem \\x1b[31mrole' ~ 'x' * 100000) }}": "refuses: no system [31mrolexxxxx",
    "{% if %}": "is broken in line 1: Expected an expression",
    "{% for m in messages %}": "is broken in line 1: Unexpected end of template",
    "{{ 'a' | nosuchfilter }}": "nosuchfilter",
    "{{ '": "is broken in line 1",
    "(" * 5 + "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}": "",
    "{% if 1 %}" * 2000 + "{% endif %}" * 2000: "",
}


@pytest.mark.parametrize("text", MISBEHAVED, ids=lambda text: text[:40])
def test_misbehaviour_ends_in_one_line(text: str) -> None:
    with stored(text) as template:
        assert MISBEHAVED[text] in problem(template)


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize(
    "text",
    [
        "{{ 10 ** (messages | length * 10 ** 8) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% if ([a] * 1000000) | sort %}{% endif %}{% endfor %}",
    ],
)
def test_what_takes_too_long_is_ended_and_the_next_rendering_works(text: str) -> None:
    switch = "{% if messages[0].content == 'slow' %}" + text + "{% else %}quick{% endif %}"
    with stored(switch) as template:
        child = child_of(template)
        began = time.monotonic()
        assert "takes more than 0.3 seconds" in problem(template, [Message("user", "slow")])
        assert time.monotonic() - began < 5
        assert not child.is_running()
        assert template.render(HELLO) == "quick"


@pytest.mark.usefixtures("short_patience")
def test_a_template_that_never_compiles_is_ended() -> None:
    with stored("{{ 10 ** (10 ** 8) }}") as template:  # a constant, so it is computed before anything is rendered
        for _ in range(2):
            assert "takes more than 0.3 seconds" in problem(template)


def test_a_template_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(TemplateError, match="65537 characters, more than 65536"):
        stored("x" * 65537)


def test_one_process_renders_everything(good: ChatTemplate) -> None:
    before = psutil.Process().children()
    for number in range(5):
        assert good.render([Message("user", str(number))]) == str(number)
    assert psutil.Process().children() == before


def test_a_failed_rendering_leaves_the_process_usable() -> None:
    with stored("{{ raise_exception('no') if messages[0].content == 'bad' else 'fine' }}") as template:
        child = child_of(template)
        assert "refuses: no;" in problem(template, [Message("user", "bad")])
        assert template.render(HELLO) == "fine"
        assert child.is_running()


def test_interrupts_of_the_terminal_do_not_reach_the_process() -> None:
    with stored("{{ messages[0].content }}") as template:
        child = child_of(template)
        assert os.getsid(child.pid) != os.getsid(0)
        child.send_signal(signal.SIGINT)
        assert template.render(HELLO) == "Hello"
        assert child.is_running()


def test_an_interrupt_while_rendering_leaves_no_stale_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with stored("{{ messages[0].content }}") as template:
        template.render(HELLO)
        with monkeypatch.context() as patch:
            patch.setattr(os, "read", lambda *_: signal.raise_signal(signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                template.render([Message("user", "interrupted")])
        assert template.render([Message("user", "next")]) == "next"


def test_a_process_that_was_killed_is_started_again() -> None:
    with stored("{{ messages[0].content }}") as template:
        child = child_of(template)
        child.kill()
        deadline = time.monotonic() + 5
        while child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.01)
        assert template.render(HELLO) == "Hello"


def test_the_process_ends_with_its_template() -> None:
    with stored("{{ messages[0].content }}") as template:
        child = child_of(template)
        template.close()
        assert not child.is_running()
        forgotten = stored("{{ messages[0].content }}")
        child = child_of(forgotten)
        del forgotten
        assert not child.is_running()


def test_the_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = """
        import os, psutil, signal
        from dllama.text.template_renderer import TemplateRenderer
        from datetime import datetime
        renderer = TemplateRenderer("x", "x")
        renderer.render({}, datetime.now())
        print(psutil.Process().children()[0].pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    parent = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    deadline = time.monotonic() + 5
    while _runs(int(parent.stdout)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(int(parent.stdout))


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_the_process_has_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLLAMA_SECRET", "secret")
    with stored("x") as template:
        child = child_of(template)
        assert "DLLAMA_SECRET" not in child.environ()
        assert sorted(os.listdir(f"/proc/{child.pid}/fd")) == ["0", "1", "2"]  # noqa: PTH208
        assert not [path for path in (entry.path for entry in child.memory_maps()) if "numpy" in path]
        assert child.rlimit(psutil.RLIMIT_NPROC) == (0, 0)
        assert child.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)


def test_threads_take_turns(good: ChatTemplate) -> None:
    answers: dict[str, str] = {}

    def ask(text: str) -> None:
        answers[text] = good.render([Message("user", text)])

    threads = [threading.Thread(target=ask, args=(str(number) * 9999,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert all(text == answer for text, answer in answers.items())


NONSENSE = [
    "garbage",
    "[1]",
    '{"text": 1}',
    '{"error": ["x"]}',
    '{"error": "\\u001b[2J"}',
    "[" * 100_000,
    "x" * 3_000_000,
]


@pytest.mark.parametrize("is_started", [False, True])
@pytest.mark.parametrize("line", NONSENSE, ids=lambda line: line[:10])
def test_nonsense_from_the_process_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, is_started: bool
) -> None:
    path = tmp_path / "program.py"
    start = "print('{}', flush=True); input()\n" if is_started else ""
    path.write_text(f"{start}print({line!r}, flush=True)\ninput()\n")
    monkeypatch.setattr(template_renderer, "_PROGRAM", path)
    monkeypatch.setattr(template_renderer, "_LONGEST_ANSWER", 1 << 20)
    assert "writes too much" in problem(stored("x")) or "spoils the answers" in problem(stored("x"))


def test_a_process_that_ends_at_once_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_renderer, "_PROGRAM", tmp_path / "nothing.py")
    assert "ends the process that renders it" in problem(stored("x"))


@pytest.mark.usefixtures("short_patience")
def test_a_slow_start_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slow.py"
    program = template_renderer._PROGRAM.read_text("utf-8")
    path.write_text(program.replace("import time\n", "import time\n\ntime.sleep(0.5)\n", 1))
    monkeypatch.setattr(template_renderer, "_PROGRAM", path)
    with stored("{{ messages[0].content }}") as template:
        assert template.render(HELLO) == "Hello"


def test_a_process_that_never_starts_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "never.py"
    path.write_text("input()")
    monkeypatch.setattr(template_renderer, "_PROGRAM", path)
    monkeypatch.setattr(template_renderer, "_START_S", 0.1)
    assert "does not start" in problem(stored("x"))


def test_a_missing_jinja_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_renderer, "_module_paths", list)
    assert "without jinja2" in problem(stored("x"))


def test_a_process_that_cannot_start_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert "No such file" in problem(stored("x"))
