"""The speed and memory that one machine must reach, measured with a random model of Llama 3.2 1B's shape.

Run from the root: ``.venv/bin/python benchmarks/one_machine.py [--model FILE]``. Without ``--model`` the file (0.7 GB
of Q40 weights and 1.05 GB of embeddings) is made once in ``models/``. Prints measured and required figures; exit code 1
if one is missed. Numbers depend on the machine being otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "random_llama3.2-1b.m"
DLLAMA = [sys.executable, "-m", "dllama"]
GMAC_PER_PROMPT_TOKEN = 0.973  # the matrices of all layers; not lm_head, which only the last token needs


def make_model(model: Path, tokenizer: Path) -> None:
    """Write the random model unless it is there."""
    if not (model.is_file() and tokenizer.is_file()):
        model.parent.mkdir(exist_ok=True)
        tool = str(ROOT / "tools" / "random_model.py")
        command = [sys.executable, tool, "--shape", "llama3.2-1b", str(model), "--tokenizer", str(tokenizer)]
        subprocess.run(command, check=True, cwd=ROOT)


def bench(model: Path, *flags: str) -> list[dict[str, Any]]:
    """Run ``dllama bench`` and read its records."""
    command = [*DLLAMA, "bench", "-m", str(model), "-o", "json", *flags]
    records = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)
    assert isinstance(records, list)
    return records


def fill_page_cache(file: Path) -> None:
    """Read a file once, in small pieces: the most memory this process ever had would count for its children too."""
    with file.open("rb") as stream:
        while stream.read(1 << 20):
            pass


def whole_process(model: Path, tokenizer: Path) -> tuple[float, float]:
    """Run a whole inference of 4 tokens; seconds and GB of the most memory resident, both of the whole process."""
    command = [*DLLAMA, "inference", "--model", str(model), "--tokenizer", str(tokenizer), "--prompt", "Hello world"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--steps", "4", "--ignore-eos"], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"dllama inference ended with exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def report(name: str, measured: float, required: float, unit: str, *, at_least: bool) -> bool:
    """Print one figure; whether it is good enough."""
    is_met = measured >= required if at_least else measured <= required
    sign = "≥" if at_least else "≤"
    print(
        f"{'ok    ' if is_met else 'MISSED'} {name:<44} {measured:8.2f}   required {sign} {required:g} {unit}",
        flush=True,
    )
    return is_met


def main() -> int:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--tokenizer", type=Path, help="default: beside the model, with suffix .t")
    args = parser.parse_args()
    tokenizer = args.tokenizer or args.model.with_suffix(".t")
    make_model(args.model, tokenizer)
    prompt, decode = bench(args.model, "-p", "512", "-n", "128", "-r", "5")
    gmac = prompt["avg_ts"] * GMAC_PER_PROMPT_TOKEN
    fill_page_cache(args.model)
    seconds, resident = min(whole_process(args.model, tokenizer) for _ in range(3))
    print(
        f"tg128 {decode['avg_ts']:.2f} t/s, pp512 {prompt['avg_ts']:.1f} t/s, {decode['isa']} on {decode['cpu_info']}"
    )
    checks = [
        report("decode, share of read bandwidth", decode["read_bandwidth_share"], 0.8, "", at_least=True),
        report("pp512", gmac, 120, "GMAC/s", at_least=True),
        report("inference of 4 tokens, whole process", seconds, 2.5, "s", at_least=False),
        report("inference of 4 tokens, most memory", resident, 1.5, "GB", at_least=False),
    ]
    return 0 if all(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
