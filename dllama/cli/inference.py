"""``dllama inference``: text after a prompt, one line per step, and a summary of the speed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dllama.cli.common import (
    Prepared,
    StepCost,
    add_model_flags,
    add_prompt_flags,
    load_engine,
    prepare,
    read_prompt,
    say,
    timed_step,
    to_json,
)
from dllama.cli.parser import number, whole
from dllama.errors import ContextFull, UsageError

if TYPE_CHECKING:
    from dllama.engine import Engine, Output, SamplingParams

EXAMPLE = (
    "example: dllama inference --model dllama/demo/model.m --tokenizer dllama/demo/tokenizer.t "
    '--prompt "Once upon a time" --steps 64'
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_prompt_flags(parser, "the text to continue")
    add_model_flags(parser)
    help_ = "most tokens to generate (default 0: until the text ends)"
    parser.add_argument("--steps", type=whole(0), default=0, metavar="N", help=help_)
    parser.add_argument("--text", action="store_true", help="print the whole text once more at the end")
    group = parser.add_argument_group("choice of tokens")
    for flag, kind, default, metavar, help_ in _SAMPLING_FLAGS:
        group.add_argument(flag, type=kind, default=default, metavar=metavar, help=help_)
    bias: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "metavar": "ID:VALUE"}
    group.add_argument("--logit-bias", type=_bias, help="added to the logits of these token ids", **bias)
    group.add_argument("--ignore-eos", action="store_true", help="go on after the end of the text")


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition(":")
    if not token.isdecimal():
        raise argparse.ArgumentTypeError(f"expected ID:VALUE with ID >= 0, e.g. 42:-5, found {text!r}")
    return int(token), number(-1000, 1000)(value)


_SAMPLING_FLAGS: tuple[tuple[str, Callable[[str], float], float | None, str, str], ...] = (
    ("--temperature", number(0, 100), 0.8, "X", "0 takes the likeliest token (default 0.8)"),
    ("--topp", number(0, 1), 0.9, "P", "the likeliest tokens up to this mass (default 0.9; 1: all)"),
    ("--seed", whole(0, 2**64 - 1), None, "N", "start of the random numbers (default: the time)"),
    ("--top-k", whole(0), 0, "K", "only the K likeliest tokens (default 0: all)"),
    ("--min-p", number(0, 1), 0.0, "P", "only tokens at least P times as likely as the likeliest (default 0)"),
    ("--repeat-penalty", number(0.01, 100), 1.0, "X", "against the last 64 tokens (default 1: none)"),
    ("--presence-penalty", number(-100, 100), 0.0, "X", "against tokens generated before (default 0)"),
    ("--frequency-penalty", number(-100, 100), 0.0, "X", "against each time a token was generated (default 0)"),
    ("--logprobs", whole(0, 100), 0, "N", "show the N likeliest tokens of each step (default 0)"),
)


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """Turn the flags into the engine's parameters."""
    from dllama.engine import SamplingParams

    return SamplingParams(
        max_tokens=args.steps or None,
        temperature=args.temperature,
        top_p=args.topp,
        top_k=args.top_k,
        min_p=args.min_p,
        repeat_penalty=args.repeat_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        logit_bias=dict(args.logit_bias),
        seed=int(time.time()) if args.seed is None else args.seed,
        logprobs=args.logprobs,
        ignore_eos=args.ignore_eos,
    )


@dataclass
class Run:
    """One generation: what it gave and what it cost."""

    prompt: str
    num_prompt_tokens: int
    max_batch_tokens: int  # most tokens in one step
    evaluation: StepCost = field(default_factory=StepCost)
    prediction: StepCost = field(default_factory=StepCost)  # of the steps after the one that gave the first token
    outputs: list[Output] = field(default_factory=list)

    def follow(self, engine: Engine, show: Callable[[str], None]) -> None:
        """Step until the request is done, showing a line for each prompt chunk and each token."""
        while engine.has_work:
            outputs, cost = timed_step(engine)
            if not self.outputs:
                self.evaluation += cost
                show(cost.line("🔷️ Eval", f"({cost.tokens} tokens)"))
                cost = StepCost()  # the prompt's last step gives the first token on the side
            else:
                self.prediction += cost
            for output in outputs:
                self.outputs.append(output)
                show(cost.line("🔶 Pred", output.text or "~"))
                if output.top_logprobs:
                    show(logprobs_line(engine, output))

    @property
    def text(self) -> str:
        """What was generated."""
        return "".join(output.text for output in self.outputs)

    @property
    def finish_reason(self) -> str | None:
        """Why it ended."""
        return self.outputs[-1].finish_reason if self.outputs else None


def rate(tokens: int, wall_us: int) -> tuple[float, float]:
    """Tokens per second and milliseconds per token; zeros where nothing was measured."""
    return (tokens / wall_us * 1e6, wall_us / tokens / 1e3) if tokens and wall_us else (0.0, 0.0)


def summary_lines(run: Run) -> list[str]:
    """Write distributed-llama's summary block."""
    lines = ["", "Evaluation", f"   nBatches: {run.max_batch_tokens}", f"    nTokens: {run.num_prompt_tokens}"]
    lines.append("   tokens/s: {:3.2f} ({:3.2f} ms/tok)".format(*rate(run.num_prompt_tokens, run.evaluation.wall_us)))
    lines += ["Prediction", f"    nTokens: {len(run.outputs)}"]
    lines.append("   tokens/s: {:3.2f} ({:3.2f} ms/tok)".format(*rate(len(run.outputs) - 1, run.prediction.wall_us)))
    return lines


def logprobs_line(engine: Engine, output: Output) -> str:
    """Write the likeliest tokens of one step, best first."""
    assert engine.tokenizer is not None
    shown = [
        f"{engine.tokenizer.piece(token).decode('utf-8', 'replace')!r} {logprob:.3f}"
        for token, logprob in output.top_logprobs or []
    ]
    return f"   logprob {output.logprob:.3f} | {', '.join(shown)}"


def as_json(run: Run, args: argparse.Namespace, seed: int | None) -> dict[str, Any]:
    """Give the results as plain data."""
    return {
        "model": args.model,
        "prompt": run.prompt,
        "text": run.text,
        "token_ids": [output.token_id for output in run.outputs],
        "finish_reason": run.finish_reason,
        "seed": seed,
        "evaluation": _speed(run.num_prompt_tokens, run.num_prompt_tokens, run.evaluation),
        "prediction": _speed(len(run.outputs), len(run.outputs) - 1, run.prediction),
        "logprobs": [_logprobs(output) for output in run.outputs] if args.logprobs else None,
    }


def _speed(tokens: int, timed_tokens: int, cost: StepCost) -> dict[str, float]:
    per_second, ms = rate(timed_tokens, cost.wall_us)
    return {"tokens": tokens, "ms": cost.wall_us / 1e3, "tokens_per_second": per_second, "ms_per_token": ms}


def _logprobs(output: Output) -> dict[str, Any]:
    return {"token_id": output.token_id, "logprob": output.logprob, "top": output.top_logprobs}


def check_prompt(prepared: Prepared) -> None:
    """Raise UsageError for an empty prompt, and for one that leaves no room to generate."""
    num_tokens, context = len(prepared.tokens), prepared.context
    if not num_tokens:
        raise UsageError("--prompt: expected at least one token, found an empty text")
    if num_tokens >= context:
        can_grow = num_tokens < prepared.model_context
        advice = f" or raise --max-seq-len to at least {num_tokens + 1}" if can_grow else ""
        limit = "the context takes" if can_grow else "the model's context takes"
        raise ContextFull(f"the prompt has {num_tokens} tokens, and {limit} at most {context - 1}; shorten it{advice}")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    prompt, sampling = read_prompt(args), sampling_params(args)
    show = (lambda _line: None) if args.json else say
    prepared = prepare(args, show, prompt)
    check_prompt(prepared)
    with load_engine(args, prepared, show) as engine:
        show(prompt)
        this = Run(prompt, len(prepared.tokens), engine.options.max_batch_tokens)
        engine.add(prepared.tokens, sampling)
        this.follow(engine, show)
    if args.json:
        say(to_json(as_json(this, args, sampling.seed)))
        return
    for line in summary_lines(this):
        say(line)
    if args.text:
        say(f"\n{prompt}{this.text}")
