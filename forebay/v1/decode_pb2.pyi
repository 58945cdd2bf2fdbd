from forebay.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MuxRequest(_message.Message):
    __slots__ = ("slot", "attach", "ready", "start", "cancel")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    slot: int
    attach: Attach
    ready: Ready
    start: Start
    cancel: Cancel
    def __init__(self, slot: _Optional[int] = ..., attach: _Optional[_Union[Attach, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., start: _Optional[_Union[Start, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("request_id", "token_ids", "num_prompt_tokens", "sampling", "salt", "fingerprint", "choice")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_prompt_tokens: int
    sampling: _common_pb2.SamplingParams
    salt: bytes
    fingerprint: bytes
    choice: int
    def __init__(self, request_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., num_prompt_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., salt: _Optional[bytes] = ..., fingerprint: _Optional[bytes] = ..., choice: _Optional[int] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("first_token_ids", "num_blocks")
    FIRST_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    first_token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_blocks: int
    def __init__(self, first_token_ids: _Optional[_Iterable[int]] = ..., num_blocks: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("choice",)
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    choice: int
    def __init__(self, choice: _Optional[int] = ...) -> None: ...

class StepFrame(_message.Message):
    __slots__ = ("step", "slots", "choices", "token_ids", "spills", "num_running", "num_waiting", "num_used_blocks")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SPILLS_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    step: int
    slots: _containers.RepeatedScalarFieldContainer[int]
    choices: bytes
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    spills: _containers.RepeatedCompositeFieldContainer[Spill]
    num_running: int
    num_waiting: int
    num_used_blocks: int
    def __init__(self, step: _Optional[int] = ..., slots: _Optional[_Iterable[int]] = ..., choices: _Optional[bytes] = ..., token_ids: _Optional[_Iterable[int]] = ..., spills: _Optional[_Iterable[_Union[Spill, _Mapping]]] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_used_blocks: _Optional[int] = ...) -> None: ...

class Spill(_message.Message):
    __slots__ = ("slot", "choice", "finished", "logprobs", "started")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    slot: int
    choice: int
    finished: Finished
    logprobs: _common_pb2.TokenLogprobs
    started: Started
    def __init__(self, slot: _Optional[int] = ..., choice: _Optional[int] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., logprobs: _Optional[_Union[_common_pb2.TokenLogprobs, _Mapping]] = ..., started: _Optional[_Union[Started, _Mapping]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason", "error_reason", "error_message", "num_draft_tokens", "num_accepted_tokens", "stop_token_id", "num_preemptions")
    REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    reason: _common_pb2.FinishReason
    error_reason: str
    error_message: str
    num_draft_tokens: int
    num_accepted_tokens: int
    stop_token_id: int
    num_preemptions: int
    def __init__(self, reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., error_reason: _Optional[str] = ..., error_message: _Optional[str] = ..., num_draft_tokens: _Optional[int] = ..., num_accepted_tokens: _Optional[int] = ..., stop_token_id: _Optional[int] = ..., num_preemptions: _Optional[int] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("pull_ms", "queue_ms", "num_local_cached_tokens", "num_pulled_tokens", "num_computed_tokens")
    PULL_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOCAL_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PULLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    pull_ms: float
    queue_ms: float
    num_local_cached_tokens: int
    num_pulled_tokens: int
    num_computed_tokens: int
    def __init__(self, pull_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., num_local_cached_tokens: _Optional[int] = ..., num_pulled_tokens: _Optional[int] = ..., num_computed_tokens: _Optional[int] = ...) -> None: ...
