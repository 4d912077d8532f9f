"""How fast the last answer was, and how full the context is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllama.version import read_bandwidth

if TYPE_CHECKING:
    from dllama.cli.chat.answer import Answer
    from dllama.cli.chat.repl import Chat
    from dllama.engine import Engine

_BANDWIDTH_S, _BUFFER_BYTES = 0.3, 256 << 20  # one measurement of memory


def stats_lines(chat: Chat) -> list[str]:
    """Write the statistics for people; the memory's rate is measured now, while nothing else runs."""
    used, context = len(chat.conversation.token_ids), chat.engine.max_seq_len
    lines = [f"context     {used} of {context} tokens ({used / context:.0%}), {len(chat.conversation.turns)} messages"]
    if chat.last_answer:
        lines += [_prompt_line(chat.last_answer), _answer_line(chat.last_answer, chat.engine)]
    return lines


def _prompt_line(answer: Answer) -> str:
    new = answer.num_prompt_tokens - answer.num_cached
    speed = f" at {answer.prompt_tokens_per_second:.1f} tokens/s"
    return f"last prompt {answer.num_prompt_tokens} tokens, {answer.num_cached} kept from before, {new} read{speed}"


def _answer_line(answer: Answer, engine: Engine) -> str:
    line = f"last answer {len(answer.token_ids)} tokens"
    if not answer.tokens_per_second:
        return line
    share, bandwidth = roof_share(answer.steps_per_second, engine)
    per_step, num_steps = engine.token_weights / 1e9, answer.writing.steps + 1
    return (
        f"{line} in {num_steps} steps at {answer.tokens_per_second:.1f} tokens/s, {share:.0%} of what memory allows\n"
        f"            ({per_step:.3f} GB of weights per step, {bandwidth / 1e9:.1f} GB/s measured now)"
    )


def roof_share(steps_per_second: float, engine: Engine) -> tuple[float, float]:
    """Give the share of the memory's read rate that steps at this speed take, and that rate in bytes per second."""
    bandwidth = read_bandwidth(engine.num_threads, _BANDWIDTH_S, _BUFFER_BYTES)
    return steps_per_second * engine.token_weights / bandwidth, bandwidth
