"""Workers come and go: by Redis, by restart, with another model."""

import asyncio

import grpc
from gateway_fakes import BLOCK_SIZE, FakeDecode, FakePrefill, model_info

from forebay.kv.hashing import block_keys, prefix_root
from forebay.kv.index import PrefixIndex
from forebay.kv.membership import Member, Membership
from forebay.v1 import inference_pb2


async def num_models(rig):
    return len((await rig.stub.ListModels(inference_pb2.ListModelsRequest())).models)


async def until(condition, within_s=5.0):
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_workers_from_redis(make_rig, redis_url, info):
    membership = Membership(redis_url, ttl_s=1.0)
    prefill, decode = await FakePrefill(info).start(), await FakeDecode(info).start()
    members = [Member("prefill", prefill.address, 1), Member("decode", decode.address, 1)]
    for member in members:
        await membership.announce(member)
    rig = await make_rig(prefill=(), decode=(), redis_url=redis_url)
    assert await num_models(rig) == 1
    await asyncio.sleep(0.2)
    prompt = inference_pb2.TokenIds(ids=[50] * (2 * BLOCK_SIZE))
    messages = [m async for m in rig.stub.Generate(inference_pb2.GenerateRequest(token_ids=prompt))]
    placement = messages[-1].receipt.placement
    assert (placement.prefill, placement.decode) == (prefill.address, decode.address)
    for member in members:
        await membership.withdraw(member)
    await prefill.stop()
    await decode.stop()

    async def gone():
        return await num_models(rig) == 0

    await until(gone)
    await membership.close()


async def test_index_decides_what_is_novel(make_rig, redis_url, info):
    index = PrefixIndex(redis_url, budget_s=1.0)
    prompt = list(range(100, 100 + 4 * BLOCK_SIZE + 5))
    root = prefix_root(info.fingerprint)
    keys = [key.key for key in block_keys(root, prompt, BLOCK_SIZE)]
    await index.announce(root, "store:1", 1)
    await index.register(root, "store:1", 1, keys[:3])
    rig = await make_rig(redis_url=redis_url, index_budget_s=1.0)
    request = inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=prompt))
    messages = [m async for m in rig.stub.Generate(request)]
    receipt = messages[-1].receipt
    assert receipt.predicted_cached_tokens == 3 * BLOCK_SIZE and receipt.placement.num_moved_blocks == 3
    assert rig.prefill.requests[0].num_store_blocks == 3
    assert [c.ready.num_blocks for c in rig.decode.commands if c.HasField("ready")] == [3, 4]
    await index.close()


async def test_two_models(make_rig, folder):
    other = model_info(folder, "other")
    second = await FakeDecode(other).start()
    first = await FakeDecode(model_info(folder)).start()
    rig = await make_rig(decode=(first.address, second.address), prefill=())

    async def both():
        return await num_models(rig) == 2

    await until(both)
    for name, worker in (("other", second), ("tiny", first)):
        request = inference_pb2.GenerateRequest(model=name, text="hi")
        messages = [m async for m in rig.stub.Generate(request)]
        assert messages[-1].receipt.placement.decode == worker.address
    try:
        [m async for m in rig.stub.Generate(inference_pb2.GenerateRequest(text="hi"))]
        raise AssertionError("which model?")
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and "several models" in error.details()
    await first.stop()
    await second.stop()


async def test_unreadable_model_folder(make_rig, folder):
    broken = model_info(folder, "broken")
    broken.folder = "/nonexistent"
    worker = await FakeDecode(broken).start()
    rig = await make_rig(decode=(worker.address,), prefill=(), startup_wait_s=0.3)
    assert await num_models(rig) == 0
    for name in ("broken", None):
        try:
            [m async for m in rig.stub.Generate(inference_pb2.GenerateRequest(text="hi", model=name))]
            raise AssertionError("nothing is served")
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, "a client may try again"
    await worker.stop()
