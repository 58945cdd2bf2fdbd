"""Models as the open inference protocol describes them; all have the same tensors."""

from __future__ import annotations

from importlib.metadata import version

from forebay.errors import InvalidArgument
from forebay.kserve import grpc_predict_v2_pb2 as pb

from .tensors import BOOL, BYTES

SERVER, VERSION = "forebay", "1"
EXTENSIONS = ["model_configuration", "model_repository"]
TEXT, STREAMING, SAMPLING = "text_input", "streaming", "sampling_parameters"
INPUTS = {TEXT: BYTES, STREAMING: BOOL, SAMPLING: BYTES}
TEXT_OUTPUT, FINISH_REASON = "text_output", "finish_reason"
OUTPUTS = (TEXT_OUTPUT, FINISH_REASON)
_TYPES = {BYTES: pb.TYPE_STRING, BOOL: pb.TYPE_BOOL}
_Tensor = pb.ModelMetadataResponse.TensorMetadata


def check_version(wanted: str) -> None:
    """There is one version of every model."""
    if wanted not in ("", VERSION):
        raise InvalidArgument("unknown version", field="model_version", limit=VERSION, got=wanted[:32])


def server_metadata() -> pb.ServerMetadataResponse:
    """This server."""
    return pb.ServerMetadataResponse(name=SERVER, version=version("forebay"), extensions=EXTENSIONS)


def metadata(name: str) -> pb.ModelMetadataResponse:
    """Tensors of a model."""
    return pb.ModelMetadataResponse(
        name=name,
        versions=[VERSION],
        platform=SERVER,
        inputs=[_Tensor(name=tensor, datatype=kind, shape=[1]) for tensor, kind in INPUTS.items()],
        outputs=[_Tensor(name=tensor, datatype=BYTES, shape=[-1]) for tensor in OUTPUTS],
    )


def configuration(name: str) -> pb.ModelConfigResponse:
    """Triton's view: no batches by the client, any number of responses."""
    inputs = [
        pb.ModelInput(name=tensor, data_type=_TYPES[kind], dims=[1], optional=tensor != TEXT)
        for tensor, kind in INPUTS.items()
    ]
    outputs = [pb.ModelOutput(name=tensor, data_type=pb.TYPE_STRING, dims=[-1]) for tensor in OUTPUTS]
    policy = pb.ModelTransactionPolicy(decoupled=True)
    return pb.ModelConfigResponse(
        config=pb.ModelConfig(
            name=name, backend=SERVER, input=inputs, output=outputs, model_transaction_policy=policy
        )
    )


def repository(names: list[str], served: set[str], ready_only: bool) -> pb.RepositoryIndexResponse:
    """All models, or those with living workers."""
    index = pb.RepositoryIndexResponse()
    for name in names:
        if name in served:
            index.models.add(name=name, version=VERSION, state="READY")
        elif not ready_only:
            index.models.add(name=name, version=VERSION, state="UNAVAILABLE", reason="no living worker")
    return index
