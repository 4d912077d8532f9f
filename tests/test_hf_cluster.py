"""A Hugging Face folder on a cluster of real processes: the same bits as its `.m` file, and quick second starts."""

from __future__ import annotations

import numpy as np
import pytest
from cluster_world import PROMPT, load, workers  # type: ignore[import-not-found]
from hf_folders import tiny_folder  # type: ignore[import-not-found]
from model_files import tiny_config  # type: ignore[import-not-found]

from dllama.engine import SamplingParams
from dllama.formats.hf_folder import CheckpointTensor
from dllama.formats.m_file import write_m_file
from dllama.hub import folders

GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


@pytest.mark.verifies(
    "On three nodes, processes of their own, a folder gives the bits of the `.m` file of the same numbers.",
    *(".m", "folder", "three nodes", "Q40"),
    families=["llama"],
)
def test_three_nodes_give_the_bits_of_the_same_m_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = tiny_folder(tmp_path / "hf")
    write_m_file(tmp_path / "same.m", tiny_config(), weights)
    results: list[tuple[bytes, list[int | None]]] = []
    converted: list[tuple[str, int]] = []
    convert = CheckpointTensor._convert

    def counted(tensor: CheckpointTensor, begin: int, end: int, out: object) -> None:
        if tensor.name != "embed_tokens":
            converted.extend((tensor.name, row) for row in range(begin, end))
        convert(tensor, begin, end, out)  # type: ignore[arg-type]

    monkeypatch.setattr(CheckpointTensor, "_convert", counted)
    with workers(tmp_path, 2) as nodes:
        for model in ("same.m", "hf", "hf"):
            converted.clear()
            with load(tmp_path / model, nodes) as engine:
                tokens = [output.token_id for output in engine.generate(PROMPT, GREEDY)]
                results.append((engine.logits(PROMPT).tobytes(), tokens))
            if model == "hf" and len(results) == 2:
                rows = [np.atleast_2d(values).shape[0] for name, values in weights.items() if name != "embed_tokens"]
                assert len(converted) == len(set(converted)) == sum(rows)  # once, for hashes and all nodes
    assert results[0] == results[1] == results[2]
    assert not converted  # by the second start
    assert len(folders.copies_of(tmp_path / "hf")) == 1


@pytest.mark.parametrize("weight_type", ["Q80"])
def test_workers_are_sent_what_changed(tmp_path, monkeypatch, weight_type):
    """Another number type of the same folder is another model, and is taken for no other."""
    from dllama.config import DType

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = tiny_folder(tmp_path / "hf")
    write_m_file(tmp_path / "q80.m", tiny_config(weight_type=DType[weight_type]), weights)
    with workers(tmp_path, 1) as nodes:
        found = []
        for model, kind in (("hf", None), ("hf", DType[weight_type]), ("q80.m", None)):
            with load(tmp_path / model, nodes, weight_type=kind) as engine:
                found.append(engine.logits(PROMPT).tobytes())
    assert found[0] != found[1]
    assert found[1] == found[2]
