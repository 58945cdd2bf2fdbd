"""The workers that this gateway knows: who is alive, which model they serve, how loaded they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import grpc
import structlog

from forebay.kv.membership import Membership
from forebay.rpc.client import connect
from forebay.v1 import admin_pb2
from forebay.v1.admin_pb2_grpc import AdminServiceStub
from forebay.v1.common_pb2 import ModelInfo
from forebay.v1.prefill_pb2_grpc import PrefillServiceStub

from .decode_link import DecodeLink
from .router import WorkerState

log = structlog.get_logger(__name__)
PREFILL, DECODE = "prefill", "decode"
RETRY_S = 0.2
ANSWER_TIMEOUT_S = 1.0


class Worker:
    """One worker process in one role: polled for identity and load."""

    def __init__(self, role: str, address: str) -> None:
        self.role, self.address = role, address
        self.state = WorkerState(address)
        self.info = ModelInfo()
        self.channel = connect(address)
        self._admin = AdminServiceStub(self.channel)
        self._epoch = 0
        self._version = ""
        self._load = admin_pb2.GetLoadResponse()
        self._answers = False

    @property
    def is_alive(self) -> bool:
        """Whether it answered lately and its model is known here."""
        return self._answers

    def status(self) -> admin_pb2.WorkerStatus:
        """What was last heard of it."""
        return admin_pb2.WorkerStatus(
            role=self.role,
            address=self.address,
            is_alive=self.is_alive,
            model=self.info.model,
            version=self._version,
            load=self._load,
        )

    async def watch(self, poll_s: float, learn: Callable[[ModelInfo], Awaitable[bool]]) -> None:
        """Poll until cancelled; `learn` makes the gateway ready for a model, and says whether it is."""
        while True:
            answered = await self._poll(learn)
            if answered != self._answers:
                log.info("worker_alive" if answered else "worker_gone", worker=self.address, role=self.role)
            self._answers = answered
            await asyncio.sleep(poll_s if answered else min(RETRY_S, poll_s))

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close()

    async def _poll(self, learn: Callable[[ModelInfo], Awaitable[bool]]) -> bool:
        try:
            identity = await self._admin.GetInfo(admin_pb2.GetInfoRequest(), timeout=ANSWER_TIMEOUT_S)
            load = await self._admin.GetLoad(admin_pb2.GetLoadRequest(), timeout=ANSWER_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        self._take_identity(identity)
        self._take_load(load)
        return await learn(self.info)

    def _take_identity(self, identity: admin_pb2.GetInfoResponse) -> None:
        if identity.epoch != self._epoch:
            self._epoch, self.info, self._version = identity.epoch, identity.model, identity.version
            self.state.routed.clear()

    def _take_load(self, load: admin_pb2.GetLoadResponse) -> None:
        self._load, state = load, self.state
        state.num_queued_tokens = load.num_queued_tokens
        state.num_running, state.num_waiting = load.num_running, load.num_waiting
        state.num_used_blocks, state.num_blocks = load.num_used_blocks, load.num_blocks
        state.prefill_tokens_per_s, state.link_bytes_per_s = load.prefill_tokens_per_s, load.link_bytes_per_s


class PrefillWorker(Worker):
    """Role prefill: one call per prompt."""

    def __init__(self, address: str) -> None:
        super().__init__(PREFILL, address)
        self.stub = PrefillServiceStub(self.channel)


class DecodeWorker(Worker):
    """Role decode: one multiplexed stream."""

    def __init__(self, address: str) -> None:
        super().__init__(DECODE, address)
        self.link = DecodeLink(self.channel, self.state)

    @property
    def is_alive(self) -> bool:
        """Also needs its stream."""
        return self._answers and self.link.is_connected

    async def watch(self, poll_s: float, learn: Callable[[ModelInfo], Awaitable[bool]]) -> None:
        """Poll, and keep the stream open."""
        link = asyncio.create_task(self.link.run())
        try:
            await super().watch(poll_s, learn)
        finally:
            link.cancel()
            await asyncio.gather(link, return_exceptions=True)


class Workers:
    """Static addresses plus, with Redis, the announced ones; both lists change on the event loop only."""

    def __init__(self, poll_s: float, learn: Callable[[ModelInfo], Awaitable[bool]]) -> None:
        self.prefill: dict[str, PrefillWorker] = {}
        self.decode: dict[str, DecodeWorker] = {}
        self._poll_s, self._learn = poll_s, learn
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._follower: asyncio.Task[None] | None = None

    def add(self, role: str, address: str) -> None:
        """Start to watch a worker; a known one is left alone."""
        if (role, address) in self._tasks:
            return
        worker: Worker
        if role == PREFILL:
            worker = self.prefill[address] = PrefillWorker(address)
        else:
            worker = self.decode[address] = DecodeWorker(address)
        task = self._tasks[role, address] = asyncio.create_task(worker.watch(self._poll_s, self._learn))
        task.add_done_callback(lambda done: _report(done, address))

    async def remove(self, role: str, address: str) -> None:
        """Stop to watch; requests that still run there fail as WORKER_LOST."""
        task = self._tasks.pop((role, address))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        workers: dict[str, Any] = self.prefill if role == PREFILL else self.decode
        await workers.pop(address).close()

    def alive(self, role: str, fingerprint: bytes) -> list[WorkerState]:
        """States of the live workers of one model."""
        workers: Iterable[Worker] = self.prefill.values() if role == PREFILL else self.decode.values()
        return [w.state for w in workers if w.is_alive and w.info.fingerprint == fingerprint]

    def is_served(self, fingerprint: bytes) -> bool:
        """Whether some decode worker of this model lives: without one nothing can be answered."""
        return any(w.is_alive and w.info.fingerprint == fingerprint for w in self.decode.values())

    def statuses(self) -> list[admin_pb2.WorkerStatus]:
        """All workers, by role and address."""
        workers: list[Worker] = [*self.decode.values(), *self.prefill.values()]
        return [worker.status() for worker in sorted(workers, key=lambda w: (w.role, w.address))]

    async def wait_for_decode(self, timeout_s: float) -> bool:
        """Wait until a decode worker is alive."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not any(worker.is_alive for worker in self.decode.values()):
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    def follow(self, membership: Membership, static: Sequence[tuple[str, str]]) -> None:
        """Keep the lists equal to `static` plus what is announced in Redis."""
        self._follower = asyncio.create_task(self._follow(membership, set(static)))

    async def close(self) -> None:
        """Stop everything."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        for role, address in list(self._tasks):
            await self.remove(role, address)

    async def _follow(self, membership: Membership, static: set[tuple[str, str]]) -> None:
        while True:
            announced = {(role, m.address) for role in (PREFILL, DECODE) for m in await membership.list(role)}
            for role, address in announced - self._tasks.keys():
                self.add(role, address)
            for role, address in self._tasks.keys() - announced - static:
                if not (self.prefill if role == PREFILL else self.decode)[address].is_alive:
                    await self.remove(role, address)
            await asyncio.sleep(self._poll_s)


def _report(task: asyncio.Task[None], address: str) -> None:
    """A watch that ends by itself is a defect: the worker would be forgotten silently."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("worker_watch_failed", worker=address, exc_info=error)
