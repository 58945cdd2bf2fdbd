"""AdminService: the same introspection for every worker."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

import grpc

from forebay.v1 import admin_pb2 as pb
from forebay.v1 import admin_pb2_grpc
from forebay.v1.common_pb2 import ModelInfo

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["AdminService"].full_name
VERSION = "0.1.0"


def new_epoch() -> int:
    """A random 63-bit epoch: one per process start."""
    return secrets.randbits(63)


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Answers from functions of the service: identity is fixed, load is live, the check may raise.

    Only a gateway has workers to list.
    """

    def __init__(
        self,
        role: str,
        epoch: int,
        model: ModelInfo | None,
        load: Callable[[], pb.GetLoadResponse],
        check_integrity: Callable[[bool], Awaitable[None]],
        list_workers: Callable[[], pb.ListWorkersResponse] = pb.ListWorkersResponse,
    ) -> None:
        self._info = pb.GetInfoResponse(role=role, epoch=epoch, model=model, version=VERSION)
        self._load, self._check_integrity, self._list_workers = load, check_integrity, list_workers

    async def GetInfo(
        self, request: pb.GetInfoRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetInfoResponse:
        """Identity."""
        return self._info

    async def GetLoad(
        self, request: pb.GetLoadRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetLoadResponse:
        """Live load."""
        return self._load()

    async def CheckIntegrity(
        self, request: pb.CheckIntegrityRequest, context: grpc.aio.ServicerContext
    ) -> pb.CheckIntegrityResponse:
        """Raises FailedPrecondition with what is wrong."""
        await self._check_integrity(request.idle)
        return pb.CheckIntegrityResponse()

    async def ListWorkers(
        self, request: pb.ListWorkersRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListWorkersResponse:
        """Who is routed to."""
        return self._list_workers()
