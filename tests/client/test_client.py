"""Both clients against a scripted gateway: deltas, errors, deadlines, retries, cancellation."""

from __future__ import annotations

import asyncio
import inspect
import time

import grpc
import pytest

from forebay import client as fb
from forebay.errors import ForebayError, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from forebay.v1 import inference_pb2 as pb

QUICK = fb.RetryPolicy(initial_delay_s=0.01)
BUSY = Unavailable("busy", reason="OVERLOADED", retry_after_s=0.02)


def piece(text="ok", **fields):
    return pb.GenerateResponse(text=text, **fields)


@pytest.fixture(params=["sync", "aio"])
def run(request, gateway):
    """`run(lambda client: client.generate("Hi"))` gives the awaited and collected result of either client."""

    async def run_async(use, options):
        async with fb.AsyncForebay(gateway.address, **options) as client:
            result = use(client)
            return await (result.collect() if isinstance(result, fb.AsyncStream) else result)

    def run_sync(use, options):
        with fb.Forebay(gateway.address, **options) as client:
            result = use(client)
            return result.collect() if isinstance(result, fb.Stream) else result

    def both(use, **options):
        options = {"retry": QUICK} | options
        return run_sync(use, options) if request.param == "sync" else asyncio.run(run_async(use, options))

    return both


def generate(client):
    return client.generate("Hi")


def test_deltas_become_a_completion(run, gateway):
    receipt = pb.Receipt(request_id="r", stages=[{"name": "prefill", "ms": 2}], seed=2**63)
    logprobs = [{"token_id": 5, "logprob": -0.5, "top_token_ids": [5], "top_logprobs": [-0.5]}]
    gateway.script = [
        [
            piece("a", token_ids=[5], logprobs=logprobs, request_id="r"),
            piece("x", choice=1, token_ids=[7]),
            piece("", choice=1, finish_reason=2),
            piece("b", token_ids=[6], finish_reason=1, usage={"prompt_tokens": 4}, receipt=receipt),
        ]
    ]
    done = run(generate)
    assert (done.text, done.token_ids, done.request_id) == ("ab", [5, 6], "r")
    assert [done.choices[c].finish_reason for c in (0, 1)] == ["stop", "length"]
    assert done.choices[0].logprobs == [fb.TokenLogprobs(5, -0.5, (5,), (-0.5,))]
    assert done.usage == fb.Usage(4, 0, 0) and done.receipt.seed == 2**63
    assert done.receipt.stages == (fb.Stage("prefill", 2.0),)


def test_arguments_reach_the_request(run, gateway):
    bias, ids = {3: -100.0}, [1, 2]
    run(lambda c: c.generate(ids, model="m", stop=["."], request_id="x", temperature=0, logit_bias=bias, n=1))
    run(lambda c: c.chat([fb.Message(role="user", content="Hi")], max_tokens=3))
    sampling = {"temperature": 0, "logit_bias": bias, "n": 1}
    first = pb.GenerateRequest(
        model="m", token_ids={"ids": ids}, stop=["."], request_id="x", sampling=sampling
    )
    second = pb.ChatRequest(messages=[{"role": "user", "content": "Hi"}], sampling={"max_tokens": 3})
    assert [request for request, _ in gateway.requests] == [first, second]


def test_everything_else(run):
    assert run(lambda c: c.tokenize("ab")) == fb.Tokens((1, 2), ("a", "b"))
    assert run(lambda c: c.detokenize([3, 4])) == "3-4"
    (model,) = run(lambda c: c.models())
    assert (model.model, model.fingerprint, model.eos_token_ids) == ("m", b"f", (2,))
    story = run(lambda c: c.explain("r-1"))
    assert (story.receipt.request_id, story.outcome) == ("r-1", "OK")
    fleet = run(lambda c: c.fleet())
    assert fleet.workers[0].load.num_running == 3 and fleet.traffic.num_output_tokens == 9


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (InvalidArgument("out of range", field="n", limit=16, got=99), fb.InvalidRequest, "INVALID_ARGUMENT"),
        (NotFound("gone", reason="REQUEST_NOT_FOUND"), fb.UnknownName, "REQUEST_NOT_FOUND"),
        (ResourceExhausted("slow", reason="SLOW_CONSUMER"), fb.Overloaded, "SLOW_CONSUMER"),
        (BUSY, fb.ServiceUnavailable, "OVERLOADED"),
        (ForebayError("bug"), fb.InternalError, "INTERNAL"),
    ],
)
def test_errors_are_typed(run, gateway, error, kind, reason):
    gateway.script = [[error]]
    with pytest.raises(kind) as caught:
        run(generate)
    failure = caught.value
    assert (failure.reason, failure.code) == (reason, error.status) and error.message in str(failure)
    assert failure.retry_after_s == (0.02 if error is BUSY else None)
    assert bool(failure.hint) == (reason not in ("INVALID_ARGUMENT", "INTERNAL"))
    if kind is fb.InvalidRequest:
        assert failure.metadata == {"field": "n", "limit": "16", "got": "99"}


def test_unavailable_is_tried_again_before_the_first_token(run, gateway):
    gateway.script = [[BUSY], [BUSY], [piece()]]
    start = time.monotonic()
    assert run(generate).text == "ok"
    assert len(gateway.requests) == 3 and time.monotonic() - start >= 0.04, "as long as the server asked"
    gateway.requests.clear()
    gateway.script = [[BUSY], []]
    assert run(lambda c: c.tokenize("ab")).token_ids == (1, 2)


def test_attempts_are_limited(run, gateway):
    gateway.script = [[BUSY]]
    with pytest.raises(fb.ServiceUnavailable):
        run(generate)
    assert len(gateway.requests) == 3
    with pytest.raises(fb.ServiceUnavailable):
        run(generate, retry=fb.RetryPolicy(max_attempts=1))
    assert len(gateway.requests) == 4


def test_no_second_try_after_a_token(run, gateway):
    gateway.script = [[piece(), BUSY]]
    with pytest.raises(fb.ServiceUnavailable):
        run(generate)
    assert len(gateway.requests) == 1


def test_other_errors_are_not_tried_again(run, gateway):
    gateway.script = [[InvalidArgument("no", field="n")]]
    with pytest.raises(fb.InvalidRequest):
        run(generate)
    assert len(gateway.requests) == 1


def test_no_wait_beyond_the_deadline(run, gateway):
    gateway.script = [[Unavailable("later", retry_after_s=60)]]
    start = time.monotonic()
    with pytest.raises(fb.ServiceUnavailable):
        run(generate, timeout_s=5)
    assert time.monotonic() - start < 4 and len(gateway.requests) == 1


def test_every_call_has_a_deadline(run, gateway):
    run(generate)
    run(lambda c: c.generate("Hi", timeout_s=7))
    run(lambda c: c.tokenize("ab"))
    (_, default), (_, own), (_, unary) = gateway.requests
    assert 500 < default <= 606 and own <= 8 and unary <= 31
    for bad in (0, -1, float("nan")):
        with pytest.raises(InvalidArgument, match="deadline"):
            run(lambda c, bad=bad: c.generate("Hi", timeout_s=bad))


def test_a_late_answer_is_a_deadline_error(run, gateway):
    gateway.script = [["wait"]]
    with pytest.raises(fb.DeadlineExceeded) as caught:
        run(generate, timeout_s=0.2)
    assert "timeout_s" in caught.value.hint and len(gateway.requests) == 1


def test_nothing_listens(gateway):
    with (
        fb.Forebay("127.0.0.1:1", retry=QUICK) as client,
        pytest.raises(fb.ServiceUnavailable, match="127.0.0.1:1"),
    ):
        client.models()


def test_errors_without_details(run, gateway):
    gateway.script = [["bare"]]
    with pytest.raises(fb.ServiceUnavailable) as caught:
        run(generate)
    assert caught.value.reason == "NOT_REACHED" and caught.value.retry_after_s is None


@pytest.mark.parametrize(
    "arguments",
    [{"seed": -1}, {"temperature": "hot"}, {"warmth": 1}, {"stop": ["\ud800"]}, {"model": "\ud800"}],
)
def test_what_no_message_can_carry(run, gateway, arguments):
    with pytest.raises(InvalidArgument):
        run(lambda c: c.generate("Hi", **arguments))
    with pytest.raises(InvalidArgument):
        run(lambda c: c.generate([2**32]))
    assert gateway.requests == []


def test_leaving_the_block_cancels(gateway):
    gateway.script = [[piece(), "wait"]]
    with fb.Forebay(gateway.address) as client:
        with client.generate("Hi") as stream:
            assert next(stream).text == "ok"
        assert gateway.cancelled.wait(5)


async def test_leaving_the_async_block_cancels(gateway):
    gateway.script = [[piece(), "wait"]]
    async with fb.AsyncForebay(gateway.address) as client:
        async with client.generate("Hi") as stream:
            assert (await anext(stream)).text == "ok"
        assert await asyncio.to_thread(gateway.cancelled.wait, 5)
        with pytest.raises((fb.Cancelled, StopAsyncIteration)):
            await anext(stream)


async def test_a_cancelled_task_stays_cancelled(gateway):
    gateway.script = [[piece(), "wait"]]
    async with fb.AsyncForebay(gateway.address) as client:
        task = asyncio.create_task(client.generate("Hi").collect())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(gateway.cancelled.wait, 5)


def test_both_clients_offer_the_same():
    def public(kind):
        members = inspect.getmembers(kind, callable)
        return {name: str(inspect.signature(m)).split(" ->")[0] for name, m in members if name[0] != "_"}

    assert public(fb.Forebay) == public(fb.AsyncForebay)


def test_details_that_are_no_status_are_ignored():
    from forebay.client.errors import to_error

    class Broken(grpc.RpcError):
        def code(self):
            return grpc.StatusCode.INTERNAL

        def details(self):
            return "x"

        def trailing_metadata(self):
            return (("grpc-status-details-bin", b"\xff\xff"),)

    assert to_error(Broken(), "a:1").reason == "INTERNAL"
