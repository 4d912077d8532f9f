"""The whole recipe from nothing: text, tokenizer, training, conversion, measurement, samples."""

from __future__ import annotations

import argparse
from pathlib import Path

import convert
import evaluate
import prepare
import samples
import train


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo_model"), help="folder for everything that is made"
    )
    parser.add_argument("--minutes", type=float, default=26.0, help="length of the training")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--start", type=Path, help="checkpoint of an earlier run whose weights this one begins with")
    args = parser.parse_args()
    out = args.work / "out"
    if not (args.work / "test.npy").exists():
        prepare.prepare(args.work)
    train.train(args.work, args.minutes, args.processes, args.start)
    convert.convert(args.work, out)
    report = evaluate.measure(args.work, out / "model.m")
    evaluate.write(report, args.work / "report.json")
    samples.write(args.work, out / "model.m", args.work / "samples.md")


if __name__ == "__main__":
    main()
