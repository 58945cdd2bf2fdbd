"""Drafters and the engine over them, without gRPC."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from draft_service.drafter import History, NgramDrafter
from draft_service.engine import Begin, DraftEngine, News, Proposal
from draft_service.model_drafter import ModelDrafter
from draft_service.servicer import to_frame, to_news
from forebay.errors import FailedPrecondition, InvalidArgument
from forebay.types import SamplingParams
from forebay.v1 import draft_pb2 as pb
from forebay.worker import Worker

MakeWorker = Callable[[int], Worker]
GREEDY = SamplingParams(temperature=0)


def prompt_of(num_tokens: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(2, 97), k=num_tokens)


def fresh(
    make_worker: MakeWorker, token_ids: Sequence[int], k: int, params: SamplingParams = GREEDY
) -> list[int]:
    """What a drafter without any past proposes."""
    history, drafter = History(token_ids, params), ModelDrafter(make_worker(64), 1024)
    return drafter.propose({history: k})[history]


def test_history_grows() -> None:
    history = History([1, 2], GREEDY)
    for i in range(200):
        history.extend([i, i + 1])
    assert history.token_ids.tolist() == [1, 2] + [t for i in range(200) for t in (i, i + 1)]


def test_ngram_continues_the_last_occurrence() -> None:
    history = History([1, 2, 3, 9, 1, 2, 4, 5, 1, 2], GREEDY)
    assert NgramDrafter().propose({history: 3}) == {history: [4, 5, 1]}
    assert NgramDrafter().propose_one([1, 2, 3], 3) == []


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_model_drafts_do_not_depend_on_the_past(make_worker: MakeWorker, temperature: float) -> None:
    """Catching up, rejected drafts, eviction and company change nothing."""
    params, draw = SamplingParams(temperature=temperature, seed=5), random.Random(1)
    drafter = ModelDrafter(make_worker(12), 24)
    histories = [History(prompt_of(3 + 9 * i, i), params) for i in range(4)]
    for _ in range(12):
        wanted = {history: draw.randint(1, 4) for history in draw.sample(histories, 3)}
        done: dict[History, list[int]] = {}
        while wanted.keys() - done.keys():
            done |= drafter.propose({h: k for h, k in wanted.items() if h not in done})
        for history, drafts in done.items():
            assert (
                drafts == fresh(make_worker, history.token_ids.tolist(), wanted[history], params)
                or not drafts
            )
            history.extend([*drafts[: draw.randint(0, 4)], draw.randrange(97)])
    for history in histories:
        drafter.close(history)
    drafter.check_idle()


def test_a_pool_that_is_too_small_drafts_nothing(make_worker: MakeWorker) -> None:
    drafter, history = ModelDrafter(make_worker(3), 64), History(prompt_of(60), GREEDY)
    assert drafter.propose({history: 4}) == {history: []}


def test_unknown_tokens_and_the_end_of_the_context_draft_nothing(make_worker: MakeWorker) -> None:
    drafter = ModelDrafter(make_worker(64), 1024)
    odd, long = History([5, 97], GREEDY), History(prompt_of(511), GREEDY)
    assert drafter.propose({odd: 4, long: 4}) == {odd: [], long: []}


class EchoDrafter:
    """Proposes the last token again; knows who was closed."""

    def __init__(self) -> None:
        self.num_closed = 0

    def propose(self, wanted: Mapping[History, int]) -> dict[History, list[int]]:
        return {history: [int(history.token_ids[-1])] * num for history, num in list(wanted.items())[:2]}

    def close(self, history: History) -> None:
        self.num_closed += 1

    def check_idle(self) -> None:
        pass


def test_every_slot_that_asks_is_answered_once_with_its_latest_history() -> None:
    drafter, published = EchoDrafter(), list[dict[int, list[Proposal]]]()
    engine = DraftEngine(drafter, max_slots=3, max_draft_tokens=2)
    engine.publish = published.append
    assert not engine.step()
    engine.tell(1, News([Begin(slot, [slot], GREEDY) for slot in (1, 2, 3, 4)], num_draft_tokens=9))
    engine.tell(1, News(extends=[(2, [7]), (8, [1])], num_draft_tokens=1))
    engine.tell(2, News([Begin(1, [6], GREEDY)]))
    while engine.step():
        pass
    assert [p for batch in published for p in batch[1]] == [
        Proposal(1, 1, 1, [1, 1]),
        Proposal(2, 2, 7, [7]),
        Proposal(3, 1, 3, [3, 3]),
    ]
    assert all(2 not in batch for batch in published)
    with pytest.raises(FailedPrecondition, match="histories are left"):
        engine.check_integrity(True)
    engine.tell(1, News(closes=[2, 99]))
    engine.close_stream(1)
    engine.close_stream(2)
    engine.check_integrity(True)
    assert drafter.num_closed == 4


def test_columns_must_add_up() -> None:
    with pytest.raises(InvalidArgument):
        to_news(pb.DraftRequest(slots=[1], num_tokens=[2], token_ids=[5]))
    with pytest.raises(InvalidArgument):
        to_news(pb.DraftRequest(slots=[1, 2], num_tokens=[1], token_ids=[5]))
    news = to_news(pb.DraftRequest(slots=[4, 9], num_tokens=[1, 2], token_ids=[5, 6, 7]))
    assert [(slot, list(ids)) for slot, ids in news.extends] == [(4, [5]), (9, [6, 7])]
    frame = to_frame([Proposal(4, 3, 8, []), Proposal(9, 2, 7, [5, 6])])
    assert (list(frame.slots), list(frame.num_tokens), list(frame.token_ids)) == ([4, 9], [0, 2], [5, 6])


def test_warm_up_runs(make_worker: MakeWorker) -> None:
    drafter = ModelDrafter(make_worker(4), 16)
    drafter.warm_up()
    drafter.check_idle()
    assert torch.isfinite(drafter._kv).all()
