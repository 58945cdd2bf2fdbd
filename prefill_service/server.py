"""Wiring of the prefill service, alone in a process or beside decode on one worker."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable

import grpc
from prometheus_client import REGISTRY

from forebay.config import load_or_exit
from forebay.engine_loop import EngineLoop
from forebay.errors import Unavailable
from forebay.kv.connector import KvConnector
from forebay.transport.local import LocalHandoff
from forebay.v1 import prefill_pb2, prefill_pb2_grpc
from forebay.v1.admin_pb2 import GetLoadResponse
from forebay.worker import Worker
from forebay.worker_app import WorkerApp, serve_worker

from .config import PrefillConfig
from .delivery import Delivery
from .engine import Engine
from .metrics import PrefillCollector
from .runner import Runner
from .scheduler import Scheduler
from .sequence import Event, Sequence
from .servicer import PrefillServicer

ROLE = "prefill"
SERVICE_NAME = prefill_pb2.DESCRIPTOR.services_by_name["PrefillService"].full_name


class PrefillParts:
    """Prefill's objects over a worker: the engine at once, the servicer once `bind` gives it a loop.

    With a `handoff`, finished prompts are offered there to a decode engine on the same pool; `budget()` then
    limits a step's tokens and `num_spare_blocks` stay free for decode.
    """

    names = (SERVICE_NAME,)

    def __init__(
        self,
        config: PrefillConfig,
        worker: Worker,
        handoff: LocalHandoff | None = None,
        budget: Callable[[], int] | None = None,
        num_spare_blocks: int = 0,
    ) -> None:
        self._config, self._worker = config, worker
        self._handoff_ttl_s = config.handoff_ttl_s if handoff is not None else 0.0
        max_tokens = config.batch_tokens(worker.device.type)
        scheduler = Scheduler(worker.pool, config.max_running, num_spare_blocks)
        runner = Runner(worker.model, worker.kv)
        self.engine = Engine(scheduler, runner, budget or (lambda: max_tokens), handoff)

    def warm_up(self) -> None:
        """One forward pass over the padding block."""
        self.engine.runner.warm_up()

    def bind(self, engine_loop: EngineLoop, connector: KvConnector) -> None:
        """Make the servicer; on the event loop, before `engine_loop` starts."""
        self._engine_loop, self._connector = engine_loop, connector
        event_loop = asyncio.get_running_loop()
        self.servicer = PrefillServicer(
            self._worker.info, self.engine, self._open_delivery, self._config.max_requests
        )
        self._collector = PrefillCollector(self.engine.stats)
        REGISTRY.register(self._collector)
        self.engine.publish = functools.partial(_publish, event_loop, self.servicer)

    def add(self, server: grpc.aio.Server) -> None:
        """Register the servicer."""
        prefill_pb2_grpc.add_PrefillServiceServicer_to_server(self.servicer, server)

    def load(self) -> GetLoadResponse:
        """Numbers of this moment; plain reads of what the engine thread writes."""
        scheduler = self.engine.scheduler
        return GetLoadResponse(
            num_running=len(scheduler.running) + len(scheduler.pulling),
            num_waiting=len(scheduler.waiting),
            num_queued_tokens=scheduler.num_queued_tokens,
            prefill_tokens_per_s=self.engine.tokens_per_s,
        )

    async def check_integrity(self, is_idle: bool) -> None:
        """Raise FailedPrecondition with what is wrong or, when idle, left."""
        if is_idle:
            self.servicer.check_idle()
        await self._engine_loop.call(self.engine.check_integrity, is_idle)

    async def drain(self) -> None:
        """Nothing to do: each stream ends with its prompt."""

    def fail(self) -> None:
        """The engine has ended: end the streams."""
        self.servicer.fail(Unavailable("the prefill engine has failed", reason="ENGINE_FAILED"))

    async def close(self) -> None:
        """End what is left; before the engine loop stops."""
        await self.servicer.close()
        REGISTRY.unregister(self._collector)

    def _open_delivery(self, sequence: Sequence, on_end: Callable[[Sequence], None]) -> Delivery:
        return Delivery(
            sequence, self.engine, self._engine_loop, self._connector, on_end, self._handoff_ttl_s
        )


def _publish(event_loop: asyncio.AbstractEventLoop, servicer: PrefillServicer, events: list[Event]) -> None:
    """From the engine thread to the event loop; nobody listens any more once that is closed."""
    with contextlib.suppress(RuntimeError):
        event_loop.call_soon_threadsafe(servicer.handle, events)


def main() -> None:
    """Serve until told to stop."""
    config = load_or_exit(PrefillConfig, ROLE)
    serve_worker(WorkerApp(ROLE, config, lambda worker: [PrefillParts(config, worker)]), ROLE, config)
