"""What tests of weights on their way share: nodes that keep what they are given, and what they should be given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from model_files import tiny_config, write_tiny_model  # type: ignore[import-not-found]

from dllama.config import ModelConfig
from dllama.engine.loading import load_weights
from dllama.formats.m_file import ModelFile, open_m_file
from dllama.formats.m_layout import tensors_in_order
from dllama.plan import Shard, tensor_slice


class FakeNode:
    """Checks pieces of weights as the core does, and keeps them."""

    def __init__(self, config: ModelConfig, shard: Shard) -> None:
        self.weights: dict[str, np.ndarray] = {}
        self.num_rows: dict[str, int] = {}
        for info in tensors_in_order(config):
            if info.name != "embed_tokens":
                part = tensor_slice(config, shard, info.name)
                if part.rows.size and part.columns.size:
                    shape = (part.rows.size, info.dtype.row_bytes(part.columns.size))
                    self.weights[info.name] = np.zeros(shape, np.uint8)
                    self.num_rows[info.name] = 0

    def weight_names(self) -> list[str]:
        return sorted(self.weights)

    def load_rows(self, name: str, first_row: int, rows: np.ndarray) -> None:
        weight = self.weights[name]
        end = first_row + len(rows)
        assert rows.flags.c_contiguous
        assert rows.shape[1] == weight.shape[1]
        assert first_row % 64 == 0
        assert 0 < len(rows) <= len(weight) - first_row
        assert len(rows) % 64 == 0 or end == len(weight)
        weight[first_row:end] = rows
        self.num_rows[name] += len(rows)

    @property
    def is_whole(self) -> bool:
        return all(self.num_rows[name] == len(weight) for name, weight in self.weights.items())


def loaded_node(file, shard: Shard) -> FakeNode:
    """Give a node that was loaded from the file, without tiles."""
    node = FakeNode(file.config, shard)
    load_weights(node, file, shard)  # type: ignore[arg-type]
    return node


def assert_same_weights(node: FakeNode, expected: FakeNode) -> None:
    assert node.is_whole
    for name, weight in expected.weights.items():
        np.testing.assert_array_equal(node.weights[name], weight, err_msg=name)


def open_transfer_model(path: Path) -> ModelFile:
    """Write a model with some hundred tiles and open it."""
    write_tiny_model(path, tiny_config(num_heads=8, num_kv_heads=4, intermediate_size=32 * 70, vocab_size=5000))
    return open_m_file(path)
