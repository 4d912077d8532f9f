"""``dllama inference``: text after a prompt, one line per step, and a summary of the speed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dllama.cli.cluster_flags import node_table, slowest
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
from dllama.cli.engine_flags import add_draft_flag
from dllama.cli.parser import whole
from dllama.cli.sampling_flags import add_sampling_flags, sampling_params
from dllama.errors import ContextFull, UsageError

if TYPE_CHECKING:
    from dllama.engine import Engine, Output

EXAMPLE = (
    "example: dllama inference --model dllama/demo/model.m --tokenizer dllama/demo/tokenizer.t "
    '--prompt "Once upon a time" --steps 64'
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_prompt_flags(parser, "the text to continue")
    add_model_flags(parser)
    add_draft_flag(parser)
    help_ = "most tokens to generate (default 0: until the text ends)"
    parser.add_argument("--steps", type=whole(0), default=0, metavar="N", help=help_)
    parser.add_argument("--text", action="store_true", help="print the whole text once more at the end")
    add_sampling_flags(parser)
    help_ = "show the N likeliest tokens of each step (default 0)"
    parser.add_argument("--logprobs", type=whole(0, 100), default=0, metavar="N", help=help_)
    parser.add_argument("--ignore-eos", action="store_true", help="go on after the end of the text")


@dataclass
class Run:
    """One generation: what it gave and what it cost."""

    prompt: str
    num_prompt_tokens: int
    max_batch_tokens: int  # most tokens in one step
    evaluation: StepCost = field(default_factory=StepCost)
    prediction: StepCost = field(default_factory=StepCost)  # of the steps after the one that gave the first token
    outputs: list[Output] = field(default_factory=list)
    nodes: list[dict[str, int | str]] = field(default_factory=list)  # counters of each
    drafts: dict[str, int] = field(default_factory=lambda: {"drafted": 0, "accepted": 0})

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
                cost = StepCost()  # of whatever else came in this step
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
    if run.drafts["drafted"]:
        lines.append("    nDrafts: {drafted} ({accepted} accepted)".format(**run.drafts))
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
        "prediction": _speed(len(run.outputs), len(run.outputs) - 1, run.prediction) | run.drafts,
        "nodes": run.nodes,
        "slowest": slowest(run.nodes),
        "logprobs": [_logprobs(output) for output in run.outputs] if args.logprobs else None,
    }


def _speed(tokens: int, timed_tokens: int, cost: StepCost) -> dict[str, float]:
    per_second, ms = rate(timed_tokens, cost.wall_us)
    return {"tokens": tokens, "ms": cost.wall_us / 1e3, "tokens_per_second": per_second, "ms_per_token": ms}


def _logprobs(output: Output) -> dict[str, Any]:
    return {"token_id": output.token_id, "logprob": output.logprob, "top": output.top_logprobs}


def check_prompt(num_tokens: int, prepared: Prepared) -> None:
    """Raise UsageError for an empty prompt, and for one that leaves no room to generate."""
    context = prepared.context
    if not num_tokens:
        raise UsageError("--prompt: expected at least one token, found an empty text")
    if num_tokens >= context:
        can_grow = num_tokens < prepared.model_context
        advice = f" or raise --max-seq-len to at least {num_tokens + 1}" if can_grow else ""
        limit = "the context takes" if can_grow else "the model's context takes"
        raise ContextFull(f"the prompt has {num_tokens} tokens, and {limit} at most {context - 1}; shorten it{advice}")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    prompt = read_prompt(args)
    show = (lambda _line: None) if args.json else say
    with prepare(args, show) as prepared:
        wanted = {"max_tokens": args.steps or None, "logprobs": args.logprobs, "ignore_eos": args.ignore_eos}
        sampling = sampling_params(args, **wanted)
        tokens = prepared.tokenizer.encode(prompt)
        check_prompt(len(tokens), prepared)
        with load_engine(args, prepared, show) as engine:
            show(prompt)
            this = Run(prompt, len(tokens), engine.options.max_batch_tokens)
            engine.add(tokens, sampling)
            this.follow(engine, show)
            this.nodes, this.drafts = engine.nodes(), engine.drafts()
    if prepared.cluster:
        show("⭕ Network is closed")
    if args.json:
        say(to_json(as_json(this, args, sampling.seed)))
        return
    for line in [*summary_lines(this), *node_table(this.nodes)]:
        say(line)
    if args.text:
        say(f"\n{prompt}{this.text}")
