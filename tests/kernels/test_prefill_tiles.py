"""The tile order of Hopper prompt attention, run in plain Python: each tile once, even work for programs."""

import random
import types

import pytest

pytest.importorskip("triton.experimental.gluon")

NUM_PROGRAMS, NUM_HEADS, BM = 132, 8, 128


class _Pointer:
    """A list that loads like a pointer."""

    def __init__(self, values: list[int], offset: int = 0) -> None:
        self.values, self.offset = values, offset

    def __add__(self, offset: int) -> "_Pointer":
        return _Pointer(self.values, self.offset + offset)


def _kernels(monkeypatch: pytest.MonkeyPatch, program: list[int]) -> types.SimpleNamespace:
    """The kernel's own functions, on a stand-in for the Gluon language."""
    from prefill_service.kernels import gluon_paged_prefill as prefill

    language = types.SimpleNamespace(
        load=lambda pointer: pointer.values[pointer.offset],
        where=lambda condition, x, y: x if condition else y,
        minimum=min,
        maximum=max,
        program_id=lambda axis: program[0],
        num_programs=lambda axis: NUM_PROGRAMS,
        constexpr=int,
    )
    names = ("_plan", "_slot", "_find_sequence", "_find_tile")
    functions = {name: getattr(prefill, name).fn for name in names}
    scope = {"gl": language}
    for name, function in functions.items():
        scope[name] = types.FunctionType(function.__code__, scope, name)
    return types.SimpleNamespace(plan=scope["_plan"], slot=scope["_slot"], find_tile=scope["_find_tile"])


@pytest.mark.parametrize(
    "lens",
    [
        (1,),
        (127,),
        (128,),
        (2048,),
        (2048,) * 8,
        (300, 1, 129, 4000),
        (17, 8192),
        (5,) * 40,
        (1, 1, 3000) * 7,
    ],
    ids=str,
)
def test_every_tile_once(lens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of every sequence and head are covered once, with the right positions."""
    program = [0]
    kernels = _kernels(monkeypatch, program)
    prefix = [random.Random(i).randrange(500) for i in range(len(lens))]
    ends = [0]
    for run in lens:
        ends.append(ends[-1] + run)
    cu, contexts = _Pointer(ends), _Pointer([p + run for p, run in zip(prefix, lens, strict=True)])
    num_slots, most = kernels.plan(cu, len(lens), NUM_HEADS, BM)
    seen: set[tuple[int, int, int]] = set()
    work = [0] * NUM_PROGRAMS
    for program[0] in range(NUM_PROGRAMS):
        for turn in range(-(-num_slots // NUM_PROGRAMS)):
            slot = kernels.slot(turn, most)
            arguments = (slot, cu, contexts, len(lens), NUM_HEADS, most, BM)
            seq, head, first, rows, position, context = kernels.find_tile(*arguments)
            if rows <= 0:
                continue
            assert rows <= BM and ends[seq] <= first and first + rows <= ends[seq + 1]
            assert position == prefix[seq] + first - ends[seq] and context == prefix[seq] + lens[seq]
            rows_seen = {(seq, head, row) for row in range(first, first + rows)}
            assert not rows_seen & seen
            seen |= rows_seen
            work[program[0]] += position + rows
    assert len(seen) == ends[-1] * NUM_HEADS
    if lens == (2048,) * 8:
        assert max(work) <= 1.06 * sum(work) / NUM_PROGRAMS
