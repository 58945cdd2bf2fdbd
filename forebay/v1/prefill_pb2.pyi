from forebay.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrefillRequest(_message.Message):
    __slots__ = ("request_id", "token_ids", "sampling", "salt", "num_store_blocks", "fingerprint")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    NUM_STORE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: _common_pb2.SamplingParams
    salt: bytes
    num_store_blocks: int
    fingerprint: bytes
    def __init__(self, request_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., salt: _Optional[bytes] = ..., num_store_blocks: _Optional[int] = ..., fingerprint: _Optional[bytes] = ...) -> None: ...

class PrefillEvent(_message.Message):
    __slots__ = ("blocks_ready", "first_token")
    BLOCKS_READY_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    blocks_ready: BlocksReady
    first_token: FirstToken
    def __init__(self, blocks_ready: _Optional[_Union[BlocksReady, _Mapping]] = ..., first_token: _Optional[_Union[FirstToken, _Mapping]] = ...) -> None: ...

class BlocksReady(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

class FirstToken(_message.Message):
    __slots__ = ("token_ids", "logprobs", "num_local_cached_tokens", "num_store_cached_tokens", "queue_ms", "pull_ms", "compute_ms", "num_queued_tokens", "prefill_tokens_per_s", "num_blocks_ready")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOCAL_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_STORE_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    PULL_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    NUM_QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_READY_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    num_local_cached_tokens: int
    num_store_cached_tokens: int
    queue_ms: float
    pull_ms: float
    compute_ms: float
    num_queued_tokens: int
    prefill_tokens_per_s: float
    num_blocks_ready: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ..., num_local_cached_tokens: _Optional[int] = ..., num_store_cached_tokens: _Optional[int] = ..., queue_ms: _Optional[float] = ..., pull_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ..., num_queued_tokens: _Optional[int] = ..., prefill_tokens_per_s: _Optional[float] = ..., num_blocks_ready: _Optional[int] = ...) -> None: ...
