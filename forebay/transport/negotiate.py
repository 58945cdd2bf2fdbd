"""Which transport to use with a store: shared memory where it can be reached, else gRPC."""

from __future__ import annotations

import grpc
import structlog

from forebay.transport import shm
from forebay.transport.base import Transport, TransportError
from forebay.transport.grpc import GrpcTransport
from forebay.v1 import kv_store_pb2 as pb

log = structlog.get_logger(__name__)

SCHEMES = ("auto", "shm", "grpc")


async def open_transport(hello: pb.HelloResponse, channel: grpc.aio.Channel, preference: str) -> Transport:
    """`preference` "auto" falls back to gRPC; "shm" raises TransportError where it is impossible."""
    if preference not in SCHEMES:
        raise ValueError(f"transport {preference!r} is not one of {SCHEMES}")
    if preference != "grpc" and "shm" in hello.transports and hello.host_id == shm.host_id():
        try:
            return await shm.attach(hello.socket_path, hello.token, hello.arena_bytes, hello.is_prefaulted)
        except TransportError as error:
            if preference == "shm":
                raise
            log.info("shm_unreachable", reason=str(error))
    elif preference == "shm":
        raise TransportError("shared memory was asked for and the store does not offer it to this host")
    return GrpcTransport(channel, hello.arena_bytes)
