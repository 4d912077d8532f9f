"""Write `tests/golden/families`: small random models of all families with the logits that transformers gives for them.

    PYTHONPATH=.:tests python tools/golden/make_families.py [NAME...]

Needs torch and transformers; everything else about the files is in `tests/golden/README.md`.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import transformers
from family_cases import CASES, Case  # type: ignore[import-not-found]
from family_models import FOLDER, Draw, Model  # type: ignore[import-not-found]
from hf_models import logits_float32, logits_float64, token_ids  # type: ignore[import-not-found]
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

LENGTH, PROMPT_LEN, NUM_GREEDY = 200, 100, 24
# Every seventh position and the last: behind windows, page borders and, for longrope, the original context.
POSITIONS = np.array([*range(0, LENGTH, 7), LENGTH - 1], np.int32)
Logits = npt.NDArray[np.float64]


def make_model(case: Case, folder: Path) -> tuple[Model, PreTrainedModel]:
    """Write the checkpoint that transformers would save, filled with our weights, and load it as transformers does."""
    config = AutoConfig.for_model(case.model_type, **case.settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    settings = {key: value for key, value in json.loads((folder / "config.json").read_text()).items() if value != []}
    model = Model(settings, case.seed, draws(case, folder / "model.safetensors"))
    model.write(folder)
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    loaded, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **plain
    )
    unlike = {key: names for key, names in report.items() if names}
    if unlike:
        raise SystemExit(f"transformers does not know its own checkpoint: {unlike}")
    return model, loaded.eval()


def draws(case: Case, saved: Path) -> dict[str, Draw]:
    """Say for each tensor that transformers saved what it is filled with: even values of the deviation wanted."""
    found = {}
    with safe_open(saved, "numpy") as file:
        for name in sorted(file.keys()):
            shape = tuple(file.get_slice(name).get_shape())
            mean, deviation = case.mean_and_deviation(name, shape)
            found[name] = Draw(shape, mean, round(deviation * math.sqrt(3), 6))
    return found


def greedy(model: PreTrainedModel, prompt: npt.NDArray[np.int32], margin: float) -> npt.NDArray[np.int32]:
    """Continue the prompt with the likeliest tokens, each ahead of the next by more than ``margin``."""
    ids = prompt
    for _ in range(NUM_GREEDY):
        last = logits_float64(model, ids)[-1]
        second, first = np.sort(last)[-2:]
        if first - second < margin:
            raise SystemExit(f"two tokens are as likely to {first - second:.1e}: take another seed")
        ids = np.append(ids, np.int32(last.argmax()))
    return ids[len(prompt) :]


def write_case(name: str, case: Case) -> None:
    """Write NAME.json and NAME.npz."""
    with tempfile.TemporaryDirectory() as folder:
        model, theirs = make_model(case, Path(folder))
    ids = token_ids(case.seed, LENGTH, model.config["vocab_size"])
    exact, single = logits_float64(theirs, ids), logits_float32(theirs, ids)
    error = np.abs(single - exact).max(axis=1)
    tokens = greedy(theirs, ids[:PROMPT_LEN], 100 * error.max())
    write_facts(FOLDER / f"{name}.json", case, model)
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        token_ids=ids,
        positions=POSITIONS,
        logits=exact[POSITIONS].astype(np.float32),
        float32_error=error[POSITIONS].astype(np.float32),
        greedy=tokens,
    )
    print(f"{name}: |logits| up to {np.abs(exact).max():.2f}, float32 differs by up to {error.max():.2e}")


def write_facts(path: Path, case: Case, model: Model) -> None:
    """Write what the model is, a line for each tensor."""
    tensors = {name: [draw.shape, draw.mean, draw.spread] for name, draw in model.draws.items()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(draw)}" for name, draw in tensors.items())
    facts = {"config": model.config, "seed": case.seed, "max_seq_len": case.max_seq_len, "prompt_len": PROMPT_LEN}
    text = json.dumps(facts, indent=1, sort_keys=True).removesuffix("\n}")
    path.write_text(f'{text},\n "tensors": {{\n{lines}\n }}\n}}\n')


def main() -> None:
    """Write the cases named on the command line, or all."""
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, numpy {np.__version__}")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or CASES:
        write_case(name, CASES[name])


if __name__ == "__main__":
    main()
