"""The models that can be had by name: distributed-llama's eleven, under its names, from its addresses.

Standard library only. Sizes are what our own arithmetic gives for each architecture, which a test repeats; what counts
in a download is what the server says. Knows nothing of this disk: see ``folders``.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_lowercase

OWNER = "b4rtaz"
CONTEXT = 4096  # tokens, for which `memory_bytes` is given


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that can be downloaded.

    Attributes:
        name: As users name it.
        repository: Where it is, without the owner.
        model_files: The parts of its ``.m`` file, which are joined in this order.
        tokenizer_file: Its ``.t`` file.
        model_bytes: Size of the joined ``.m`` file.
        memory_bytes: Memory that it needs on one machine with a context of ``CONTEXT``.
    """

    name: str
    repository: str
    model_files: tuple[str, ...]
    tokenizer_file: str
    model_bytes: int
    memory_bytes: int

    @property
    def page(self) -> str:
        """Path of the repository on the server."""
        return f"{OWNER}/{self.repository}"

    @property
    def model_name(self) -> str:
        """What its ``.m`` file is called here."""
        return f"dllama_model_{self.name}.m"

    @property
    def tokenizer_name(self) -> str:
        """What its ``.t`` file is called here."""
        return f"dllama_tokenizer_{self.name}.t"


def find_entry(name: str) -> Entry | None:
    """Find a model by its name, ``-`` standing for ``_`` too."""
    return CATALOGUE.get(name.replace("-", "_"))


def _parts(stem: str, number: int) -> tuple[str, ...]:
    """Name the parts of a file that was cut: ``stem`` with aa, ab, … behind it."""
    letters = ascii_lowercase
    return tuple(f"{stem}{letters[index // 26]}{letters[index % 26]}" for index in range(number))


def _qwen3(size: str, model_bytes: int, memory_bytes: int) -> Entry:
    name = f"qwen3_{size}"
    repository = f"Qwen3-{size.upper()}-Q40-Distributed-Llama"
    files = (f"dllama_model_{name}_q40.m",)
    return Entry(f"{name}_q40", repository, files, f"dllama_tokenizer_{name}.t", model_bytes, memory_bytes)


_ENTRIES = (
    _qwen3("0.6b", 957833360, 891436544),
    _qwen3("1.7b", 2212909200, 1530998272),
    _qwen3("8b", 6747607184, 4974390784),
    Entry(
        "qwen3_14b_q40",
        "Qwen3-14B-Q40-Distributed-Llama",
        _parts("dllama_model_qwen3_14b_q40_", 2),
        "dllama_tokenizer_qwen3_14b.t",
        model_bytes=10982707344,
        memory_bytes=8665148928,
    ),
    Entry(
        "qwen3_30b_a3b_q40",
        "Qwen3-30B-A3B-Q40-Distributed-Llama",
        _parts("dllama_model_qwen3_30b_a3b_", 5),
        "dllama_tokenizer_qwen3_30b_a3b.t",
        model_bytes=18287927448,
        memory_bytes=17552213504,
    ),
    Entry(
        "llama3_2_1b_instruct_q40",
        "Llama-3_2-1B-Q40-Instruct-Distributed-Llama",
        ("dllama_model_llama3.2-1b-instruct_q40.m",),
        "dllama_tokenizer_llama3_2.t",
        model_bytes=1746051248,
        memory_bytes=917279488,
    ),
    Entry(
        "llama3_2_3b_instruct_q40",
        "Llama-3_2-3B-Q40-Instruct-Distributed-Llama",
        ("dllama_model_llama3.2-3b-instruct_q40.m",),
        "dllama_tokenizer_llama3_2.t",
        model_bytes=3383783600,
        memory_bytes=2373477120,
    ),
    Entry(
        "llama3_1_8b_instruct_q40",
        "Llama-3_1-8B-Q40-Instruct-Distributed-Llama",
        ("dllama_model_llama3.1_instruct_q40.m",),
        "dllama_tokenizer_llama_3_1.t",
        model_bytes=6323781808,
        memory_bytes=4866781952,
    ),
    Entry(
        "deepseek_r1_distill_llama_8b_q40",
        "DeepSeek-R1-Distill-Llama-8B-Distributed-Llama",
        ("dllama_model_deepseek-r1-distill-llama-8b_q40.m",),
        "dllama_tokenizer_deepseek-r1-distill-llama-8b.t",
        model_bytes=6323781808,
        memory_bytes=4866781952,
    ),
    Entry(
        "llama3_3_70b_instruct_q40",
        "Llama-3_3-70B-Q40-Instruct-Distributed-Llama",
        _parts("dllama_model_llama-3.3-70b_q40", 11),
        "dllama_tokenizer_llama-3.3-70b.t",
        model_bytes=43302682800,
        memory_bytes=40589226752,
    ),
    Entry(
        "llama3_1_405b_instruct_q40",
        "Llama-3_1-405B-Q40-Instruct-Distributed-Llama",
        _parts("dllama_model_llama31_405b_q40_", 56),
        "dllama_tokenizer_llama_3_1.t",
        model_bytes=237908328624,  # published with 16 KV heads, as the model first came
        memory_bytes=233954407168,
    ),
)
CATALOGUE = {entry.name: entry for entry in _ENTRIES}
