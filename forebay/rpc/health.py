"""The standard health service. Its watches end at the shutdown; the stock one's would hold up the drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from forebay.errors import NotFound


class HealthServicer(health_pb2_grpc.HealthServicer):
    """grpc.health.v1: "" stands for the process, every gRPC service has its own name."""

    def __init__(self) -> None:
        self._states: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._is_ending = False

    async def set(self, name: str, state: int) -> None:
        """Set one name's state; ignored once the shutdown has begun."""
        async with self._changed:
            if not self._is_ending:
                self._states[name] = state
                self._changed.notify_all()

    async def enter_graceful_shutdown(self) -> None:
        """NOT_SERVING for every name, for good; watches send it and end."""
        async with self._changed:
            self._is_ending = True
            self._states = dict.fromkeys(self._states, pb.HealthCheckResponse.NOT_SERVING)
            self._changed.notify_all()

    async def Check(
        self, request: pb.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> pb.HealthCheckResponse:
        """The state of a name; NOT_FOUND for an unknown one."""
        if request.service not in self._states:
            raise NotFound(f"no service {request.service!r} here")
        return pb.HealthCheckResponse(status=self._states[request.service])

    async def Watch(
        self, request: pb.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        """The state now and each change of it; SERVICE_UNKNOWN while the name is unknown."""
        sent: int | None = None
        while sent is None or not self._is_ending:
            async with self._changed:
                while self._state(request.service) == sent and not self._is_ending:
                    await self._changed.wait()
                sent = self._state(request.service)
            yield pb.HealthCheckResponse(status=sent)

    def _state(self, name: str) -> int:
        return self._states.get(name, pb.HealthCheckResponse.SERVICE_UNKNOWN)
