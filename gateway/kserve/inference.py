"""ModelInferRequest to a checked request, pieces to ModelInferResponse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forebay.errors import InvalidArgument
from forebay.kserve import grpc_predict_v2_pb2 as pb
from forebay.types import FinishReason
from forebay.v1 import inference_pb2
from forebay.v1.inference_pb2 import Usage

from ..intake import Intake
from ..openai.fields import Fields
from ..openai.sampling import DEFAULT_MAX_COMPLETION_TOKENS, refuse_unsupported, sampling_of
from ..request import Request
from .models import (
    FINISH_REASON,
    INPUTS,
    OUTPUTS,
    SAMPLING,
    STREAMING,
    TEXT,
    TEXT_OUTPUT,
    VERSION,
    check_version,
)
from .tensors import BYTES, Inputs, pack

FINAL = "triton_final_response"
_Tensor = pb.ModelInferResponse.InferOutputTensor


@dataclass(frozen=True)
class Inference:
    """A request with what its responses need."""

    id: str
    request: Request
    is_stream: bool
    outputs: tuple[str, ...]

    def response(
        self, texts: Sequence[str], reasons: Sequence[int], usage: Usage | None
    ) -> pb.ModelInferResponse:
        """One element for each choice; the response with `usage` is the last."""
        values = {TEXT_OUTPUT: texts, FINISH_REASON: [_reason(reason) for reason in reasons]}
        response = pb.ModelInferResponse(
            model_name=self.request.model.name,
            model_version=VERSION,
            id=self.id,
            outputs=[_Tensor(name=name, datatype=BYTES, shape=[len(texts)]) for name in self.outputs],
            raw_output_contents=[pack(values[name]) for name in self.outputs],
        )
        response.parameters[FINAL].bool_param = usage is not None
        if usage is not None:
            response.parameters["prompt_tokens"].int64_param = usage.prompt_tokens
            response.parameters["completion_tokens"].int64_param = usage.completion_tokens
        return response


async def read(message: pb.ModelInferRequest, intake: Intake) -> Inference:
    """Check and tokenise; parameters of the request win over those in the tensor."""
    check_version(message.model_version)
    inputs = Inputs(message, INPUTS)
    text = inputs.text(TEXT)
    if text is None:
        raise InvalidArgument("must be given", field=TEXT)
    fields = _parameters(message, inputs.text(SAMPLING))
    refuse_unsupported(fields)
    sampling = sampling_of(fields)
    if not sampling.HasField("max_tokens"):
        sampling.max_tokens = DEFAULT_MAX_COMPLETION_TOKENS
    is_stream = inputs.flag(STREAMING)
    if is_stream and sampling.n > 1:
        raise InvalidArgument("must be 1 for a stream", field="n", limit=1, got=sampling.n)
    request = inference_pb2.GenerateRequest(
        model=message.model_name or None, text=text, sampling=sampling, stop=fields.texts("stop")
    )
    return Inference(message.id, await intake.generate(request), is_stream, _outputs(message))


def _parameters(message: pb.ModelInferRequest, as_json: str | None) -> Fields:
    values = Fields.parse(as_json, SAMPLING).values() if as_json else {}
    for name, parameter in message.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            values[name] = getattr(parameter, kind)
    return Fields(values)


def _outputs(message: pb.ModelInferRequest) -> tuple[str, ...]:
    names = tuple(output.name for output in message.outputs) or OUTPUTS
    for name in names:
        if name not in OUTPUTS:
            raise InvalidArgument("unknown output", field="outputs", limit=list(OUTPUTS), got=name[:64])
    return names


def _reason(reason: int) -> str:
    return "" if reason == FinishReason.UNSPECIFIED else FinishReason(reason).name.lower()
