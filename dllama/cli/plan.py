"""``dllama plan``: who owns what of a model on several nodes, and what it costs each of them.

Reads the model's header alone. What nodes exchange is counted, not measured.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from dllama.cli.cluster_flags import add_cluster_flags, connect, wire_type
from dllama.cli.common import MIB, add_model_flag, add_size_flags, find_model, say, to_json
from dllama.cli.engine_flags import kv_type, weight_type
from dllama.cli.parser import whole
from dllama.errors import NotEnoughMemory, UsageError

if TYPE_CHECKING:
    from dllama.config import ModelConfig
    from dllama.engine.sizing import NodeOptions, NodeSize
    from dllama.plan import Plan, Shard, Traffic

EXAMPLE = "example: dllama plan --model demo --nodes 3 --shares 2,1,1"
MOST_NODES = 1024  # of a cluster
KIB = 1 << 10


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_model_flag(parser)
    help_ = "machines, the root too (default: this one and --workers, which are asked for their free memory)"
    parser.add_argument("--nodes", type=whole(1, MOST_NODES), metavar="N", help=help_)
    add_size_flags(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    add_cluster_flags(parser)


def describe(
    config: ModelConfig, plan: Plan, options: NodeOptions, available: Sequence[int | None], names: Sequence[str] = ()
) -> dict[str, Any]:
    """Describe a plan.

    Args:
        config: A valid model config.
        plan: Who owns what.
        options: What is wanted of the nodes.
        available: Free bytes of each rank; None: not known.
        names: What users call each rank; by default ``root``, ``worker 1`` and so on.

    Returns:
        What is printed, as data. Its ``problem`` is None, or says which node lacks memory and what to do; then the
        sizes are those that were wanted.
    """
    from dllama.plan import node_name

    names = names or [node_name(rank) for rank in range(len(plan.shards))]
    sizes, problem = _settle(config, plan, options, available, names)
    exchanges, traffic = _wire(config, len(names), options)
    parts = zip(names, plan.shards, sizes, available, traffic, strict=True)
    nodes = [
        {"rank": rank, "name": name, **_owned(shard), **_memory(size, free), **cost}
        for rank, (name, shard, size, free, cost) in enumerate(parts)
    ]
    context = {"context": sizes[0].max_seq_len, "model_context": config.max_seq_len}
    return {"nodes": nodes, "shared_kv_heads": _shared(plan), **context, **exchanges, "problem": problem}


def _settle(
    config: ModelConfig, plan: Plan, options: NodeOptions, available: Sequence[int | None], names: Sequence[str]
) -> tuple[list[NodeSize], str | None]:
    """Give the size of every node, and what is wrong with it."""
    from dllama.engine.sizing import settle_sizes

    try:
        return settle_sizes(config, plan, options, available, names), None
    except NotEnoughMemory as error:
        return settle_sizes(config, plan, options, [None] * len(names)), str(error)


def _shared(plan: Plan) -> list[int]:
    """List the KV heads that several nodes hold."""
    counts = Counter(head for shard in plan.shards for head in range(shard.kv_heads.begin, shard.kv_heads.end))
    return sorted(head for head, count in counts.items() if count > 1)


def _owned(shard: Shard) -> dict[str, Any]:
    ranges = {"heads": shard.heads, "kv_heads": shard.kv_heads, "ffn_columns": shard.ffn, "vocabulary": shard.vocab}
    return {name: {"begin": part.begin, "end": part.end} for name, part in ranges.items()}


def _memory(size: NodeSize, free: int | None) -> dict[str, Any]:
    needs = {f"{name}_bytes": num_bytes for name, num_bytes in asdict(size.memory).items()}
    total = size.memory.total
    return {**needs, "total_bytes": total, "free_bytes": free, "fits": None if free is None else total <= free}


def _wire(
    config: ModelConfig, world_size: int, options: NodeOptions
) -> tuple[dict[str, str], list[dict[str, dict[str, float]]]]:
    """Say what is exchanged how, and count bytes of every node: per generated token, and per token of a full step."""
    from dllama.plan import Exchange, exchanges_of, step_traffic

    wire_type, num_tokens = options.wire_type_for(config), options.max_batch_tokens
    decode = step_traffic(config, world_size, wire_type, Exchange.DIRECT, 1, 1)
    ways = exchanges_of(config)
    prompts = {each: step_traffic(config, world_size, wire_type, each, num_tokens, 0) for each in ways}
    best = min(prompts, key=lambda each: max(traffic.sent for traffic in prompts[each]))
    nodes = [
        {"decode": _per_token(one, 1), "prompt": _per_token(other, num_tokens)}
        for one, other in zip(decode, prompts[best], strict=True)
    ]
    exchanges = {"decode_exchange": Exchange.DIRECT.value, "prompt_exchange": best.value}
    return {"wire_type": wire_type.name.lower(), **exchanges}, nodes


def _per_token(traffic: Traffic, num_tokens: int) -> dict[str, float]:
    return {"sent_bytes": traffic.sent / num_tokens, "received_bytes": traffic.received / num_tokens}


def lines(facts: dict[str, Any]) -> list[str]:
    """Write the description of a plan in lines of at most 80 columns, but for long names and notes."""
    nodes = facts["nodes"]
    written = [f"context: {facts['context']} tokens, of {facts['model_context']} that the model can have", ""]
    needed = [*_NEEDED, "free"] if any(node["free_bytes"] is not None for node in nodes) else _NEEDED
    written += [*_table(_OWNED, map(_owned_cells, nodes)), "", *_table(needed, map(_needed_cells, nodes))]
    if len(nodes) > 1:
        written += ["", *_table(_SENT, map(_sent_cells, nodes)), *_wire_lines(facts)]
    return [*written, *_notes(facts)]


_OWNED = ("", "heads", "KV heads", "FFN columns", "vocabulary")
_NEEDED = ("MiB", "weights", "KV", "buffers", "total")
_SENT = ("KiB per token", "generated: sent", "received", "prompt: sent", "received")


def _owned_cells(node: dict[str, Any]) -> list[str]:
    parts = (node[name] for name in ("heads", "kv_heads", "ffn_columns", "vocabulary"))
    return [node["name"], *(str(part["end"] - part["begin"]) for part in parts)]


def _needed_cells(node: dict[str, Any]) -> list[str]:
    needs = [str(-(-node[f"{name}_bytes"] // MIB)) for name in ("weights", "kv", "buffers", "total")]
    free = "" if node["free_bytes"] is None else str(node["free_bytes"] // MIB)
    return [node["name"], *needs, free, *(["does not fit"] if node["fits"] is False else [])]


def _sent_cells(node: dict[str, Any]) -> list[str]:
    numbers = (node[step][way] / KIB for step in ("decode", "prompt") for way in ("sent_bytes", "received_bytes"))
    return [node["name"], *(f"{value:.1f}" for value in numbers)]


def _table(head: Sequence[str], rows: Iterable[list[str]]) -> list[str]:
    """Align columns, the first to the left; the last cells of some rows are remarks without a head."""
    cells = [[*head], *rows]
    widths = [max(map(len, column)) for column in zip_longest(*cells, fillvalue="")]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]


def _wire_lines(facts: dict[str, Any]) -> list[str]:
    wire_type, decode, prompt = facts["wire_type"], facts["decode_exchange"], facts["prompt_exchange"]
    return [
        f"exchanges in {wire_type}: {decode} for generated tokens, {prompt} for prompts",
        "(a cluster chooses by what it measures)",
    ]


def _notes(facts: dict[str, Any]) -> list[str]:
    """Say what is not shared out as one would think."""
    notes = []
    if facts["shared_kv_heads"]:
        shared = ", ".join(map(str, facts["shared_kv_heads"]))
        notes.append(f"held by several nodes, who share their query heads: KV heads {shared}")
    without = [node["name"] for node in facts["nodes"] if node["heads"]["begin"] == node["heads"]["end"]]
    if without:
        notes.append(f"no attention, as all heads are given out: {', '.join(without)}")
    return ["", *notes] if notes else []


def _nodes(args: argparse.Namespace) -> tuple[Sequence[str], list[int | None]]:
    """Give names and free bytes of the nodes; without workers none are known."""
    from dllama import machine

    if not args.workers:
        if args.nodes is None:
            raise UsageError("--nodes: say how many machines, or name workers with --workers")
        return (), [None] * args.nodes
    if args.nodes not in (None, len(args.workers) + 1):
        raise UsageError(f"--nodes: expected {len(args.workers) + 1} with these --workers, found {args.nodes}")
    cluster = connect(args, lambda _line: None)
    assert cluster is not None
    free = [peer.facts.available_memory if peer.facts else None for peer in cluster.peers]
    cluster.close()
    return cluster.names, [machine.available_memory(), *free]


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from dllama import machine
    from dllama.engine.sizing import NodeOptions
    from dllama.formats.open_model import open_model
    from dllama.plan import make_plan

    options = NodeOptions(
        num_threads=args.nthreads or machine.physical_cores(),
        max_seq_len=args.max_seq_len or None,
        kv_type=kv_type(args),
        wire_type=wire_type(args),
    )
    model = find_model(args.model)[0]
    with open_model(model, weight_type(args, model)) as file:
        config = file.config
    names, free = _nodes(args)
    facts = describe(config, make_plan(config, len(free), args.shares), options, free, names)
    for line in [to_json(facts)] if args.json else lines(facts):
        say(line)
    if facts["problem"]:
        raise NotEnoughMemory(facts["problem"])
