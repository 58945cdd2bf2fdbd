"""One handshake with one store: control calls, payload transport, and the epoch they belong to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from forebay.kv.hashing import KEY_BYTES, BlockKey
from forebay.kv.layout import BlockLayout
from forebay.rpc.client import connect
from forebay.transport.base import Grant, Transport, TransportError
from forebay.transport.negotiate import open_transport
from forebay.transport.shm import host_id
from forebay.v1 import kv_store_pb2 as pb
from forebay.v1 import kv_store_pb2_grpc

PROTOCOL_VERSION = 1
_CLOSE_GRACE_S = 30.0


@dataclass(frozen=True)
class Reserved:
    """Answer to `reserve`; `grants` are for the blocks after the `num_present` leading ones."""

    lease_id: bytes
    num_present: int
    grants: list[Grant]
    is_pending: bool


@dataclass(frozen=True)
class Acquired:
    """Answer to `acquire`: the leading blocks that are held."""

    lease_id: bytes
    grants: list[Grant]


class StoreSession:
    """Control calls of a store, each within `timeout_s`. They raise `grpc.aio.AioRpcError`."""

    def __init__(
        self,
        control: grpc.aio.Channel,
        bulk: grpc.aio.Channel,
        hello: pb.HelloResponse,
        transport: Transport,
        timeout_s: float,
    ) -> None:
        self._control, self._bulk = control, bulk
        self._stub = kv_store_pb2_grpc.KvStoreServiceStub(control)
        self.epoch, self.transport, self._timeout_s = hello.epoch, transport, timeout_s

    async def lookup(self, keys: Sequence[BlockKey]) -> int:
        """Number of leading blocks held."""
        request = pb.LookupRequest(epoch=self.epoch, keys=pack(keys))
        reply = await self._stub.Lookup(request, timeout=self._timeout_s)
        return int(reply.num_blocks)

    async def reserve(
        self, root: bytes, parent: bytes, keys: Sequence[BlockKey], block_bytes: int, lease_s: float
    ) -> Reserved:
        """Slots for what the store lacks."""
        request = pb.ReserveRequest(
            epoch=self.epoch,
            root=root,
            parent=parent,
            keys=pack(keys),
            block_bytes=block_bytes,
            duration_ms=int(lease_s * 1000),
        )
        reply = await self._stub.Reserve(request, timeout=self._timeout_s)
        is_pending = reply.outcome == pb.RESERVE_OUTCOME_PENDING
        return Reserved(reply.lease_id, reply.num_present, unpack_grants(reply.grants), is_pending)

    async def commit(self, lease_id: bytes, grants: Sequence[Grant]) -> int:
        """Number of leading blocks that became visible."""
        handles = b"".join(grant.handle for grant in grants)
        request = pb.CommitRequest(epoch=self.epoch, lease_id=lease_id, handles=handles)
        reply = await self._stub.Commit(request, timeout=self._timeout_s)
        return int(reply.num_blocks)

    async def acquire(self, keys: Sequence[BlockKey], lease_s: float) -> Acquired:
        """Read leases."""
        request = pb.AcquireRequest(epoch=self.epoch, keys=pack(keys), duration_ms=int(lease_s * 1000))
        reply = await self._stub.Acquire(request, timeout=self._timeout_s)
        return Acquired(reply.lease_id, unpack_grants(reply.grants))

    async def release(self, lease_id: bytes, corrupt: Sequence[BlockKey] = ()) -> None:
        """End a lease and report damaged blocks."""
        request = pb.ReleaseRequest(epoch=self.epoch, lease_id=lease_id, corrupt_keys=pack(corrupt))
        await self._stub.Release(request, timeout=self._timeout_s)

    async def close(self) -> None:
        """Close transport and channels."""
        await self.transport.close()
        # With a grace: closing at once would raise CancelledError inside calls of other requests.
        await self._control.close(_CLOSE_GRACE_S)
        await self._bulk.close(_CLOSE_GRACE_S)


async def open_session(address: str, layout: BlockLayout, preference: str, timeout_s: float) -> StoreSession:
    """Shake hands with the store at `address`; raises AioRpcError or TransportError."""
    # Two channels: a 1 MiB frame must not stand in front of a control call.
    control, bulk = connect(address), connect(address)
    request = pb.HelloRequest(
        protocol_version=PROTOCOL_VERSION, host_id=host_id(), layout_id=layout.layout_id
    )
    try:
        hello = await kv_store_pb2_grpc.KvStoreServiceStub(control).Hello(request, timeout=timeout_s)
        transport = await open_transport(hello, bulk, preference)
    except (grpc.aio.AioRpcError, TransportError, asyncio.CancelledError):
        await control.close()
        await bulk.close()
        raise
    return StoreSession(control, bulk, hello, transport, timeout_s)


def pack(keys: Sequence[BlockKey]) -> bytes:
    """The 16-byte keys, one after another."""
    return b"".join(key.key for key in keys)


def unpack_grants(columns: pb.Grants) -> list[Grant]:
    """Grants from their columns."""
    handles = (columns.handles[at : at + KEY_BYTES] for at in range(0, len(columns.handles), KEY_BYTES))
    rows = zip(handles, columns.offsets, columns.sizes, columns.generations, strict=True)
    return [Grant(*row) for row in rows]
