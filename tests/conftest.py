"""What many tests share: tiny model files made once per run, and the command as users start it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from model_files import byte_tokenizer_data, write_tiny_model  # type: ignore[import-not-found]
from models_table import (  # type: ignore[import-not-found]  # noqa: F401  # hooks of pytest
    pytest_addoption,
    pytest_collection_finish,
    pytest_configure,
    pytest_runtest_makereport,
    pytest_sessionfinish,
)

from dllama.formats.t_file import write_t_file

# A busy machine must not fail a test; pytest's timeout catches what hangs.
hypothesis.settings.register_profile("dllama", deadline=None)
hypothesis.settings.load_profile("dllama")


# Whoever started the tests may ignore Ctrl-C, as a shell's background jobs do; programs under test must heed it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What a developer has set for the command must not reach the tests; an instruction-set level may.
for _name in [name for name in os.environ if name.startswith("DLLAMA_") and name != "DLLAMA_ISA"]:
    del os.environ[_name]
os.environ["DLLAMA_CONFIG"] = os.devnull


@dataclass(frozen=True)
class Files:
    """Paths of a tiny model and of a tokenizer that fits it."""

    model: Path
    tokenizer: Path

    @property
    def flags(self) -> list[str]:
        return ["--model", str(self.model), "--tokenizer", str(self.tokenizer)]


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what programs under test remember, such as hashes of models, away from this user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tiny")
    files = Files(folder / "tiny.m", folder / "tiny.t")
    write_tiny_model(files.model)
    write_t_file(files.tokenizer, byte_tokenizer_data())
    return files


@pytest.fixture
def dllama(tmp_path: Path) -> Command:
    """Run the command in a folder of its own; ``env`` is added to the environment."""

    def run(*arguments: object, env: dict[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dllama", *map(str, arguments)]
        environment = {**os.environ, **(env or {})}
        return subprocess.run(
            command, input=stdin, capture_output=True, encoding="utf-8", cwd=tmp_path, env=environment, timeout=60
        )

    return run
