"""How loops are found in disassembled products, which `benchmarks/cycles.py` hands to llvm-mca."""

from __future__ import annotations

import pytest

from benchmarks import cycles

JUMP = " <_ZN4tile+0x8>"


def code(*lines: str) -> list[tuple[int, str]]:
    """Give lines as instructions at addresses 0, 4, 8…"""
    return [(4 * at, line) for at, line in enumerate(lines)]


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("vpmaddubsw %ymm1,%ymm0,%ymm1", 32),
        ("{vex} vpdpbusd -0x4(%rax),%ymm2,%ymm3", 32),
        ("vpdpbusd (%rax){1to16},%zmm2,%zmm3", 64),
        ("sdot\tv1.4s, v2.16b, v3.4b[1]", 16),
        ("smmla\tv1.4s, v2.16b, v3.16b", 32),
        ("vpaddd %ymm1,%ymm0,%ymm1", 0),
    ],
)
def test_multiplications_of_an_instruction(line: str, count: int) -> None:
    assert cycles.products(code(line)) == count


def test_the_loop_over_blocks_ends_at_its_nearest_jump_and_has_no_prefetches() -> None:
    lines = (
        "xor %eax,%eax",
        "vpmaddubsw %ymm1,%ymm0,%ymm1",
        "prefetcht1 (%rax)",
        f"jne 4{JUMP}",
        "inc %rax",
        f"jmp 4{JUMP}",
    )
    assert cycles.block_loop(code(*lines), 32) == ("top:\nvpmaddubsw %ymm1,%ymm0,%ymm1\njne top\n", 1)


def test_a_loop_within_is_written_out() -> None:
    lines = ("movi v0.4s, #0", "sdot\tv1.4s, v2.16b, v3.16b", f"b.ne\t4{JUMP}", "scvtf\tv1.4s, v1.4s", f"b.ne\t0{JUMP}")
    text, blocks = cycles.block_loop(code(*lines), 64)
    assert (text.count("sdot"), text.count("movi"), text.count("scvtf"), blocks) == (4, 1, 1, 1)


def test_an_unrolled_loop_is_several_blocks() -> None:
    text, blocks = cycles.block_loop(code(*4 * ["smmla\tv1.4s, v2.16b, v3.16b"], f"b.ne\t0{JUMP}"), 64)
    assert (text.count("smmla"), blocks) == (4, 2)
