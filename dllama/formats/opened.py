"""What open models have in common: embeddings by token, the facts that are printed, and files to close."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

from dllama.config import Activation, ModelConfig, RopeScaling
from dllama.errors import UsageError
from dllama.formats.quants import Floats
from dllama.formats.source import StoredTensor

T = TypeVar("T", bound=StoredTensor)

_TITLES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3 MoE",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "phi3": "Phi-3",
    "olmo2": "OLMo 2",
    "granite": "Granite",
}
_ACTIVATIONS = {Activation.SILU: "Silu", Activation.GELU_TANH: "Gelu"}
_ROPE_TITLES = {"llama3": "Llama3.1", "linear": "Linear", "yarn": "Yarn", "longrope": "LongRope"}
_HALVES = "Falcon"  # distributed-llama's name of Hugging Face's order of rows


class Closable(Protocol):
    """A file that a model holds open."""

    def close(self) -> None:
        """Close it; a second call does nothing."""


class OpenModel(Generic[T]):
    """An open model: all of a ``ModelSource`` but its identity.

    Attributes:
        path: What was opened.
        config: The model.
        tensors: Every tensor by name, ``embed_tokens`` as F32.
    """

    def __init__(self, path: str, config: ModelConfig, tensors: Mapping[str, T], files: Sequence[Closable]) -> None:
        self.path, self.config, self.tensors = path, config, tensors
        self._files = files

    def embedding_rows(self, token_ids: Sequence[int]) -> Floats:
        """Read the embeddings of some tokens, float32 ``[len(token_ids), hidden_size]``, without the multiplier.

        Raises:
            UsageError: An id is outside the model's vocabulary.
            BadFile: The file no longer holds these rows.
        """
        table = self.tensors["embed_tokens"]
        rows = np.empty((len(token_ids), table.row_bytes), np.uint8)
        for index, token_id in enumerate(token_ids):
            if not 0 <= token_id < table.rows:
                raise UsageError(
                    f"token {token_id} is outside the model's vocabulary of {table.rows}; "
                    "the tokenizer is probably another model's"
                )
            table.read_rows(token_id, token_id + 1, out=rows[index : index + 1])
        return rows.view("<f4").astype(np.float32, copy=False)

    def summary(self, max_seq_len: int | None = None) -> dict[str, str]:
        """Give the facts that distributed-llama prints when it loads a model, under its names and in its order.

        Args:
            max_seq_len: The context in use; the model's own if None.
        """
        config, seq_len = self.config, max_seq_len or self.config.max_seq_len
        facts = {
            "Arch": _TITLES.get(config.model_type, config.model_type),
            "HiddenAct": _ACTIVATIONS[config.activation],
        }
        sizes = {
            "Dim": config.hidden_size,
            "HeadDim": config.head_dim,
            "QDim": config.q_size,
            "KvDim": config.kv_size,
            "HiddenDim": config.intermediate_size,
            "VocabSize": config.vocab_size,
            "nLayers": config.num_layers,
            "nHeads": config.num_heads,
            "nKvHeads": config.num_kv_heads,
        }
        if seq_len != config.max_seq_len:
            sizes["OrigSeqLen"] = config.max_seq_len
        if config.has_experts:
            sizes |= {"nExperts": config.num_experts, "nActiveExperts": config.num_experts_per_tok}
            sizes["MoeHiddenDim"] = config.moe_intermediate_size
        sizes["SeqLen"] = seq_len
        facts |= {name: str(size) for name, size in sizes.items()}
        facts["NormEpsilon"] = f"{config.rms_norm_eps:f}"
        return facts | dict(self._rope_facts()) | dict(_window_facts(config))

    def rope_title(self) -> str:
        """Name the rotation as distributed-llama does: by how it is scaled, or else by the order of the file's rows."""
        scaling = self.config.rope_scaling
        return _ROPE_TITLES[scaling.kind] if scaling else _HALVES

    def _rope_facts(self) -> Iterator[tuple[str, str]]:
        yield "RopeType", self.rope_title()
        yield "RopeTheta", f"{self.config.rope_theta:.0f}"
        if self.config.rope_scaling:
            yield "RopeScaling", _scaling_text(self.config.rope_scaling)

    def close(self) -> None:
        """Close all files; tensors can no longer be read."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        """Return the model itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def _scaling_text(scaling: RopeScaling) -> str:
    if scaling.kind == "llama3":
        return (
            f"f={scaling.factor:.1f}, l={scaling.low_freq_factor:.1f}, "
            f"h={scaling.high_freq_factor:.1f}, o={scaling.original_max_seq_len}"
        )
    original = f", o={scaling.original_max_seq_len}" if scaling.original_max_seq_len else ""
    return f"f={scaling.factor:.1f}{original}"


def _window_facts(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Say how far layers look back, where some do not see all that was before."""
    counts = Counter(layer.window for layer in config.layers if layer.window)
    if counts:
        windows = (f"{window}, in {count} of {config.num_layers} layers" for window, count in counts.items())
        yield "Window", "; ".join(windows)
