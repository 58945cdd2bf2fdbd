"""Channel and server arguments, measured: a frozen peer is noticed in about 1.2 s.

`keepalive_time/timeout` alone needs 60 s with grpcio 1.85; `ping_timeout_ms` brings it to a second. Pings
this frequent need a server that permits them, or it answers GOAWAY too_many_pings.
"""

from __future__ import annotations

MiB = 1 << 20
MAX_MESSAGE_BYTES = 32 * MiB
MAX_PUBLIC_MESSAGE_BYTES = 4 * MiB

CLIENT_ARGS: list[tuple[str, int | str]] = [
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
]

INTERNAL_SERVER_ARGS: list[tuple[str, int | str]] = [
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
]

PUBLIC_SERVER_ARGS: list[tuple[str, int | str]] = [
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", MAX_PUBLIC_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
]
