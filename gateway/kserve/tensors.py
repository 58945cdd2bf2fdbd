"""Tensors of the open inference protocol: BYTES and BOOL, raw or typed."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from forebay.errors import InvalidArgument
from forebay.kserve import grpc_predict_v2_pb2 as pb

BYTES, BOOL = "BYTES", "BOOL"
_LENGTH = struct.Struct("<I")


class Inputs:
    """The tensors of one request by name, each of one element; unknown ones are refused."""

    def __init__(self, request: pb.ModelInferRequest, datatypes: dict[str, str]) -> None:
        raw = request.raw_input_contents
        if raw and len(raw) != len(request.inputs):
            what = "one entry for each input is needed"
            raise InvalidArgument(what, field="raw_input_contents", limit=len(request.inputs), got=len(raw))
        self._raw = {tensor.name: raw[i] for i, tensor in enumerate(request.inputs)} if raw else {}
        self._tensors = {tensor.name: tensor for tensor in request.inputs}
        for tensor in request.inputs:
            _check(tensor, datatypes)

    def text(self, name: str) -> str | None:
        """A BYTES tensor's only element as UTF-8; None where it was not given."""
        content = self._bytes(name)
        try:
            return None if content is None else content.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgument("is not valid UTF-8", field=name) from error

    def flag(self, name: str) -> bool:
        """A BOOL tensor's only element; false where it was not given."""
        if name in self._raw:
            return _unpack_flag(self._raw[name], name)
        return name in self._tensors and any(self._tensors[name].contents.bool_contents)

    def _bytes(self, name: str) -> bytes | None:
        if name in self._raw:
            return _unpack(self._raw[name], name)
        if name not in self._tensors:
            return None
        elements = self._tensors[name].contents.bytes_contents
        if len(elements) != 1:
            raise InvalidArgument("one element is needed", field=name, limit=1, got=len(elements))
        return elements[0]


def pack(texts: Sequence[str]) -> bytes:
    """Raw content of a BYTES tensor."""
    encoded = [text.encode() for text in texts]
    return b"".join(_LENGTH.pack(len(content)) + content for content in encoded)


def _unpack(raw: bytes, name: str) -> bytes:
    if len(raw) < _LENGTH.size or _LENGTH.unpack_from(raw)[0] != len(raw) - _LENGTH.size:
        raise InvalidArgument("one BYTES element with its length is needed", field=name)
    return raw[_LENGTH.size :]


def _unpack_flag(raw: bytes, name: str) -> bool:
    if len(raw) != 1:
        raise InvalidArgument("one byte is needed", field=name, limit=1, got=len(raw))
    return raw != b"\0"


def _check(tensor: pb.ModelInferRequest.InferInputTensor, datatypes: dict[str, str]) -> None:
    expected = datatypes.get(tensor.name)
    if expected is None:
        raise InvalidArgument("unknown input", field="inputs", limit=list(datatypes), got=tensor.name[:64])
    if tensor.datatype != expected:
        raise InvalidArgument(
            "wrong datatype", field=tensor.name, limit=expected, got=tensor.datatype[:16] or "none"
        )
    if any(size != 1 for size in tensor.shape):
        raise InvalidArgument(
            "one element is needed", field=tensor.name, limit=[1], got=str(list(tensor.shape[:8]))
        )
