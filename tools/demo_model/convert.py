"""Turn a checkpoint into the shipped pair: model.m (Q40) and tokenizer.t."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from model import Llama, ModelArgs
from tokenizer import BOS, EOS, EOT, token_bytes
from tokenizers import Tokenizer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dllama.config import DType, LayerSpec, ModelConfig
from dllama.formats.m_file import open_m_file, write_m_file
from dllama.formats.t_file import TokenizerData, write_t_file

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def load_checkpoint(path: Path) -> Llama:
    """Load the trained weights, not quantized."""
    model = Llama(ModelArgs())
    model.load_state_dict(torch.load(path)["model"])
    return model.eval()


def config_of(args: ModelArgs) -> ModelConfig:
    """Describe the model in dllama's terms."""
    sizes = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    names = (*sizes, "vocab_size", "max_seq_len", "rms_norm_eps", "rope_theta")
    return ModelConfig(
        model_type="llama",
        weight_type=DType.Q40,
        layers=(LayerSpec(),) * args.num_layers,
        **{name: getattr(args, name) for name in names},
    )


def _file_name(name: str) -> str:
    name = name.removesuffix(".weight")
    return name.replace("input_norm", "input_layernorm").replace("post_norm", "post_attention_layernorm")


def write_model(model: Llama, path: Path) -> None:
    """Write the ``.m`` file; the writer quantizes."""
    tensors: dict[str, npt.NDArray[np.float32]] = {
        _file_name(name): value.float().numpy() for name, value in model.state_dict().items()
    }
    tensors["lm_head"] = tensors["embed_tokens"]
    write_m_file(path, config_of(model.args), tensors)


def write_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write the ``.t`` file. The end of a turn comes first: distributed-llama ends messages with the first one."""
    pieces = tuple(token_bytes(tokenizer))
    scores = -np.arange(len(pieces), dtype=np.float32)
    bos, eos, eot = (tokenizer.token_to_id(token) for token in (BOS, EOS, EOT))
    write_t_file(path, TokenizerData(pieces, scores, bos, (eot, eos), True, CHAT_TEMPLATE))


def load_exported(path: Path) -> Llama:
    """The model that a .m file holds: Q40 values in every matrix, the output copy of the embedding included."""
    model = Llama(ModelArgs()).eval()
    with open_m_file(path) as file:
        state: dict[str, Tensor] = {}
        for name, value in model.state_dict().items():
            floats = file.tensors[_file_name(name)].read_floats()
            state[name] = torch.from_numpy(floats.copy()).reshape(value.shape)
        head = torch.from_numpy(file.tensors["lm_head"].read_floats().copy())
    model.load_state_dict(state)
    model.freeze_head(head)
    return model


def convert(work: Path, out: Path) -> None:
    """Write both files beside their places, then rename, so that readers never see half a file."""
    out.mkdir(parents=True, exist_ok=True)
    write_model(load_checkpoint(work / "checkpoint.pt"), out / "model.m.new")
    write_tokenizer(Tokenizer.from_file(str(work / "tokenizer.json")), out / "tokenizer.t.new")
    for name in ("model.m", "tokenizer.t"):
        (out / f"{name}.new").replace(out / name)
    total = sum((out / name).stat().st_size for name in ("model.m", "tokenizer.t"))
    print(f"wrote {out / 'model.m'} and tokenizer.t: {total} bytes", flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/demo_model"))
    parser.add_argument("--out", type=Path, default=Path("build/demo_model/out"))
    args = parser.parse_args()
    convert(args.work, args.out)


if __name__ == "__main__":
    main()
