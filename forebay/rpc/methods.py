"""Methods that appear once their service is built; until then a call is UNAVAILABLE, not UNIMPLEMENTED."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc

from forebay.errors import Unavailable


class LateMethods(grpc.GenericRpcHandler):
    """Registered on the server before it starts; generated `add_*Servicer_to_server` functions fill it."""

    def __init__(self) -> None:
        self.is_ready = False
        self._handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """The part of grpc.Server's interface that registration uses."""
        self._handlers += handlers

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler]
    ) -> None:
        """The same methods by name; the generic form above already has them."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a method, None if there is no such method."""
        for handler in self._handlers:
            found = handler.service(handler_call_details)
            if found is not None:
                return found
        return None if self.is_ready else grpc.stream_stream_rpc_method_handler(_not_ready)


async def _not_ready(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
    raise Unavailable("the service is still starting", reason="STARTING")
    yield
