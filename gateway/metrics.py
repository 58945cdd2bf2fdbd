"""Prometheus metrics under the OpenTelemetry GenAI names; touched per request, never per token."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

DURATION_BUCKETS = [0.01 * 2**i for i in range(14)]
TTFT_BUCKETS = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
TPOT_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5]
LABELS = ["gen_ai_operation_name", "gen_ai_request_model"]

REQUESTS = Counter("forebay_gateway_requests", "Ended requests by outcome", [*LABELS, "outcome"])
LIVE = Gauge("forebay_gateway_live_requests", "Requests in flight")
PROMPT_TOKENS = Counter("forebay_gateway_prompt_tokens", "Prompt tokens", LABELS)
CACHED_TOKENS = Counter("forebay_gateway_cached_tokens", "Prompt tokens whose KV was reused", LABELS)
OUTPUT_TOKENS = Counter("forebay_gateway_output_tokens", "Generated tokens", LABELS)
PREFILL_FALLBACKS = Counter(
    "forebay_gateway_prefill_fallbacks", "Prompts that decode computed because prefill failed"
)
DURATION = Histogram(
    "gen_ai_server_request_duration_seconds", "Arrival to end", LABELS, buckets=DURATION_BUCKETS
)
TIME_TO_FIRST_TOKEN = Histogram(
    "gen_ai_server_time_to_first_token_seconds", "Arrival to first token", LABELS, buckets=TTFT_BUCKETS
)
TIME_PER_OUTPUT_TOKEN = Histogram(
    "gen_ai_server_time_per_output_token_seconds", "Decode time per token", LABELS, buckets=TPOT_BUCKETS
)
