"""Places requests and keeps the journal of live ones. Everything here runs on the event loop."""

from __future__ import annotations

import asyncio

from forebay.errors import FailedPrecondition, ForebayError, Unavailable
from forebay.kv.index import PrefixIndex
from forebay.v1.admin_pb2 import GetLoadResponse, ListWorkersResponse
from forebay.v1.inference_pb2 import ExplainResponse

from .attempt import Attempt
from .config import GatewayConfig
from .generation import Generation
from .metrics import LIVE
from .models import Models
from .recent import RecentRequests
from .request import Request
from .router import Demand, Route, RoutedKeys, Router
from .workers import DECODE, PREFILL, Workers


class Engine:
    """The gateway's state: models, workers, router, journal."""

    def __init__(
        self, config: GatewayConfig, models: Models, workers: Workers, index: PrefixIndex | None
    ) -> None:
        self.models, self.workers = models, workers
        self._recent = RecentRequests()
        self._config, self._index = config, index
        self._router = Router(config.local_prefill_max_tokens)
        self._stored = RoutedKeys()
        self._journal: dict[str, Generation] = {}
        self._drained: asyncio.Event | None = None

    def open(self, request: Request) -> Generation:
        """A journal entry; its `close` must be called. Raises Unavailable when too many live or it drains."""
        if self._drained is not None:
            raise Unavailable("the gateway is stopping", reason="DRAINING")
        if len(self._journal) >= self._config.max_requests:
            raise Unavailable(
                "the gateway is full; try again soon", reason="OVERLOADED", limit=self._config.max_requests
            )
        generation = self._journal[request.request_id] = Generation(request, self._forget)
        LIVE.set(len(self._journal))
        return generation

    async def place(self, generation: Generation, timeout_s: float | None) -> None:
        """Look up the prompt's blocks, choose workers, begin there."""
        try:
            await self._place(generation, timeout_s)
        except ForebayError as error:
            generation.outcome = error.reason
            raise

    async def _place(self, generation: Generation, timeout_s: float | None) -> None:
        request = generation.request
        info, timeline = request.model.info, request.timeline
        keys = generation.hash_prompt()
        num_store_blocks = await self._match(request.model.root, keys)
        timeline.mark("indexed")
        demand = Demand(
            keys,
            len(request.token_ids),
            num_store_blocks,
            info.block_size,
            info.block_bytes,
            request.params.n,
        )
        route = self._route(demand, request)
        attempt = self._attempt(request, route, num_store_blocks)
        timeline.mark("routed")
        generation.start(attempt, route, timeout_s)

    async def drain(self) -> None:
        """Refuse new requests, wait for those at hand."""
        self._drained = asyncio.Event()
        if self._journal:
            await self._drained.wait()

    def load(self) -> GetLoadResponse:
        """Live requests."""
        return GetLoadResponse(num_running=len(self._journal))

    def explain(self, request_id: str) -> ExplainResponse:
        """The story of a request that ended lately; raises FailedPrecondition while it runs."""
        if request_id in self._journal:
            raise FailedPrecondition(f"request {request_id} still runs", reason="REQUEST_RUNNING")
        return self._recent.find(request_id)

    def list_workers(self) -> ListWorkersResponse:
        """All known workers, alive or not, and this gateway's traffic."""
        traffic = self._recent.traffic(self._journal.values())
        return ListWorkersResponse(workers=self.workers.statuses(), traffic=traffic)

    async def check_integrity(self, idle: bool) -> None:
        """With `idle`: no request, no slot and no counted share of a worker is left."""
        slots = sum(worker.link.num_slots for worker in self.workers.decode.values())
        if slots > len(self._journal):
            raise FailedPrecondition(f"{slots} slots for {len(self._journal)} requests")
        states = [w.state for w in (*self.workers.decode.values(), *self.workers.prefill.values())]
        counted = {s.address: (s.own_sequences, s.own_queued_tokens) for s in states}
        if any(min(pair) < 0 for pair in counted.values()):
            raise FailedPrecondition(f"negative counts of own sequences, queued tokens: {counted}")
        if idle and (self._journal or slots or any(any(pair) for pair in counted.values())):
            what = f"{len(self._journal)} requests, {slots} slots, own (sequences, queued tokens): {counted}"
            raise FailedPrecondition(f"the gateway is not idle: {what}")

    async def _match(self, root: bytes, keys: list[bytes]) -> int:
        """Leading blocks that some store should hold; the index keeps its own budget and never raises.

        Without a living index it is what prefill workers told this gateway. All of it is a hint.
        """
        if self._index is not None:
            matches = await self._index.match(root, keys)
            if matches or self._index.is_healthy:
                return min(matches[0][1], len(keys)) if matches else 0
        return self._stored.match(keys)

    def _route(self, demand: Demand, request: Request) -> Route:
        fingerprint = request.model.info.fingerprint
        decodes = self.workers.alive(DECODE, fingerprint)
        if not decodes:
            raise Unavailable(
                f"no decode worker of {request.model.name!r} is alive", reason="NO_DECODE_CAPACITY"
            )
        return self._router.route(demand, self.workers.alive(PREFILL, fingerprint), decodes)

    def _attempt(self, request: Request, route: Route, num_store_blocks: int) -> Attempt:
        link = self.workers.decode[route.decode.address].link
        prefill = self.workers.prefill[route.prefill.address] if route.prefill else None
        return Attempt(request, route, link, prefill, num_store_blocks, self._config.max_buffered_tokens)

    def _forget(self, generation: Generation) -> None:
        """Drop the journal entry, and keep what it taught about caches."""
        self._stored.add(generation.keys[: generation.num_blocks_ready])
        if generation.route is not None:
            generation.route.decode.routed.add(generation.hash_output())
        self._recent.add(generation)
        del self._journal[generation.request.request_id]
        LIVE.set(len(self._journal))
        if self._drained is not None and not self._journal:
            self._drained.set()
