"""Translation between KvStoreService messages and the block store."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from forebay.errors import FailedPrecondition, InvalidArgument
from forebay.kv.hashing import KEY_BYTES
from forebay.kv.layout import LAYOUT_VERSION
from forebay.transport.shm import host_id
from forebay.v1 import kv_store_pb2 as pb
from forebay.v1 import kv_store_pb2_grpc

from .engine import StoreEngine
from .lease import Grant
from .store import Outcome

PROTOCOL_VERSION = 1
MAX_KEYS = 16384

_OUTCOMES = {
    Outcome.COMPLETE: pb.RESERVE_OUTCOME_COMPLETE,
    Outcome.PENDING: pb.RESERVE_OUTCOME_PENDING,
    Outcome.FULL: pb.RESERVE_OUTCOME_FULL,
    Outcome.PARENT_MISSING: pb.RESERVE_OUTCOME_PARENT_MISSING,
}


class KvStoreServicer(kv_store_pb2_grpc.KvStoreServiceServicer):
    """Each method: check, one call into the store, translate."""

    def __init__(self, engine: StoreEngine) -> None:
        self._engine, self._store = engine, engine.store

    async def Hello(self, request: pb.HelloRequest, context: grpc.aio.ServicerContext) -> pb.HelloResponse:
        """Refuses a peer of another protocol or layout version."""
        if request.protocol_version != PROTOCOL_VERSION:
            got = request.protocol_version
            raise FailedPrecondition(f"protocol {got} is not {PROTOCOL_VERSION}", reason="INCOMPATIBLE_PEER")
        if not request.layout_id.startswith(f"v{LAYOUT_VERSION}:"):
            raise FailedPrecondition(f"layout {request.layout_id!r} is not ours", reason="INCOMPATIBLE_PEER")
        sockets = self._engine.sockets if request.host_id == host_id() else None
        return pb.HelloResponse(
            epoch=self._engine.epoch,
            protocol_version=PROTOCOL_VERSION,
            host_id=host_id(),
            transports=["shm", "grpc"] if sockets else ["grpc"],
            socket_path=sockets.path if sockets else "",
            token=sockets.issue_token() if sockets else b"",
            arena_bytes=self._engine.arena.num_bytes,
            is_prefaulted=self._engine.arena.is_prefaulted,
        )

    async def Lookup(self, request: pb.LookupRequest, context: grpc.aio.ServicerContext) -> pb.LookupResponse:
        """Longest prefix."""
        self._engine.check_epoch(request.epoch)
        return pb.LookupResponse(num_blocks=self._store.lookup(_keys(request.keys)))

    async def Reserve(
        self, request: pb.ReserveRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReserveResponse:
        """Slots for what the store lacks."""
        self._engine.check_epoch(request.epoch)
        reserved = self._store.reserve(
            request.root,
            request.parent or None,
            _keys(request.keys),
            request.block_bytes,
            request.duration_ms / 1000,
        )
        return pb.ReserveResponse(
            num_present=reserved.num_present,
            lease_id=reserved.lease_id,
            grants=_grants(reserved.grants),
            outcome=_OUTCOMES[reserved.outcome],
        )

    async def Commit(self, request: pb.CommitRequest, context: grpc.aio.ServicerContext) -> pb.CommitResponse:
        """Written blocks become visible."""
        self._engine.check_epoch(request.epoch)
        return pb.CommitResponse(num_blocks=self._store.commit(request.lease_id, _keys(request.handles)))

    async def Acquire(
        self, request: pb.AcquireRequest, context: grpc.aio.ServicerContext
    ) -> pb.AcquireResponse:
        """Read leases."""
        self._engine.check_epoch(request.epoch)
        acquired = self._store.acquire(_keys(request.keys), request.duration_ms / 1000)
        return pb.AcquireResponse(lease_id=acquired.lease_id, grants=_grants(acquired.grants))

    async def Release(
        self, request: pb.ReleaseRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReleaseResponse:
        """Ends a lease and checks blocks said to be damaged."""
        self._engine.check_epoch(request.epoch)
        self._store.release(request.lease_id)
        self._store.report_corrupt_all(_keys(request.corrupt_keys))
        return pb.ReleaseResponse()

    async def Stats(self, request: pb.StatsRequest, context: grpc.aio.ServicerContext) -> pb.StatsResponse:
        """Occupancy and counters."""
        return pb.StatsResponse(
            arena_bytes=self._engine.arena.num_bytes,
            num_blocks=self._store.num_blocks,
            num_leases=self._store.num_leases,
            **vars(self._store.stats),
        )


def _keys(packed: bytes) -> list[bytes]:
    if len(packed) % KEY_BYTES or len(packed) > MAX_KEYS * KEY_BYTES:
        raise InvalidArgument(
            "must be packed 16-byte values", field="keys", limit=MAX_KEYS * KEY_BYTES, got=len(packed)
        )
    return [packed[at : at + KEY_BYTES] for at in range(0, len(packed), KEY_BYTES)]


def _grants(grants: Sequence[Grant]) -> pb.Grants:
    return pb.Grants(
        handles=b"".join(grant.handle for grant in grants),
        offsets=[grant.offset for grant in grants],
        generations=[grant.generation for grant in grants],
        sizes=[grant.num_bytes for grant in grants],
    )
