from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReserveOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESERVE_OUTCOME_UNSPECIFIED: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_COMPLETE: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_PENDING: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_FULL: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_PARENT_MISSING: _ClassVar[ReserveOutcome]
RESERVE_OUTCOME_UNSPECIFIED: ReserveOutcome
RESERVE_OUTCOME_COMPLETE: ReserveOutcome
RESERVE_OUTCOME_PENDING: ReserveOutcome
RESERVE_OUTCOME_FULL: ReserveOutcome
RESERVE_OUTCOME_PARENT_MISSING: ReserveOutcome

class HelloRequest(_message.Message):
    __slots__ = ("protocol_version", "host_id", "layout_id")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_ID_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    host_id: str
    layout_id: str
    def __init__(self, protocol_version: _Optional[int] = ..., host_id: _Optional[str] = ..., layout_id: _Optional[str] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("epoch", "protocol_version", "host_id", "transports", "socket_path", "token", "arena_bytes", "is_prefaulted")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    SOCKET_PATH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    IS_PREFAULTED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    protocol_version: int
    host_id: str
    transports: _containers.RepeatedScalarFieldContainer[str]
    socket_path: str
    token: bytes
    arena_bytes: int
    is_prefaulted: bool
    def __init__(self, epoch: _Optional[int] = ..., protocol_version: _Optional[int] = ..., host_id: _Optional[str] = ..., transports: _Optional[_Iterable[str]] = ..., socket_path: _Optional[str] = ..., token: _Optional[bytes] = ..., arena_bytes: _Optional[int] = ..., is_prefaulted: bool = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("epoch", "keys")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    keys: bytes
    def __init__(self, epoch: _Optional[int] = ..., keys: _Optional[bytes] = ...) -> None: ...

class LookupResponse(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("epoch", "root", "parent", "keys", "block_bytes", "duration_ms")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    root: bytes
    parent: bytes
    keys: bytes
    block_bytes: int
    duration_ms: int
    def __init__(self, epoch: _Optional[int] = ..., root: _Optional[bytes] = ..., parent: _Optional[bytes] = ..., keys: _Optional[bytes] = ..., block_bytes: _Optional[int] = ..., duration_ms: _Optional[int] = ...) -> None: ...

class ReserveResponse(_message.Message):
    __slots__ = ("num_present", "lease_id", "grants", "outcome")
    NUM_PRESENT_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    num_present: int
    lease_id: bytes
    grants: Grants
    outcome: ReserveOutcome
    def __init__(self, num_present: _Optional[int] = ..., lease_id: _Optional[bytes] = ..., grants: _Optional[_Union[Grants, _Mapping]] = ..., outcome: _Optional[_Union[ReserveOutcome, str]] = ...) -> None: ...

class Grants(_message.Message):
    __slots__ = ("handles", "offsets", "generations", "sizes")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    offsets: _containers.RepeatedScalarFieldContainer[int]
    generations: _containers.RepeatedScalarFieldContainer[int]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, handles: _Optional[bytes] = ..., offsets: _Optional[_Iterable[int]] = ..., generations: _Optional[_Iterable[int]] = ..., sizes: _Optional[_Iterable[int]] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("epoch", "lease_id", "handles")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lease_id: bytes
    handles: bytes
    def __init__(self, epoch: _Optional[int] = ..., lease_id: _Optional[bytes] = ..., handles: _Optional[bytes] = ...) -> None: ...

class CommitResponse(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

class AcquireRequest(_message.Message):
    __slots__ = ("epoch", "keys", "duration_ms")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    keys: bytes
    duration_ms: int
    def __init__(self, epoch: _Optional[int] = ..., keys: _Optional[bytes] = ..., duration_ms: _Optional[int] = ...) -> None: ...

class AcquireResponse(_message.Message):
    __slots__ = ("lease_id", "grants")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    lease_id: bytes
    grants: Grants
    def __init__(self, lease_id: _Optional[bytes] = ..., grants: _Optional[_Union[Grants, _Mapping]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("epoch", "lease_id", "corrupt_keys")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_KEYS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lease_id: bytes
    corrupt_keys: bytes
    def __init__(self, epoch: _Optional[int] = ..., lease_id: _Optional[bytes] = ..., corrupt_keys: _Optional[bytes] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("arena_bytes", "num_blocks", "num_leases", "num_hits", "num_misses", "num_commits", "num_evictions", "num_refused", "num_expired_leases", "num_corrupt")
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_LEASES_FIELD_NUMBER: _ClassVar[int]
    NUM_HITS_FIELD_NUMBER: _ClassVar[int]
    NUM_MISSES_FIELD_NUMBER: _ClassVar[int]
    NUM_COMMITS_FIELD_NUMBER: _ClassVar[int]
    NUM_EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPIRED_LEASES_FIELD_NUMBER: _ClassVar[int]
    NUM_CORRUPT_FIELD_NUMBER: _ClassVar[int]
    arena_bytes: int
    num_blocks: int
    num_leases: int
    num_hits: int
    num_misses: int
    num_commits: int
    num_evictions: int
    num_refused: int
    num_expired_leases: int
    num_corrupt: int
    def __init__(self, arena_bytes: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_leases: _Optional[int] = ..., num_hits: _Optional[int] = ..., num_misses: _Optional[int] = ..., num_commits: _Optional[int] = ..., num_evictions: _Optional[int] = ..., num_refused: _Optional[int] = ..., num_expired_leases: _Optional[int] = ..., num_corrupt: _Optional[int] = ...) -> None: ...
