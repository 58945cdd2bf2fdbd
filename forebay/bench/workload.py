"""What to send and when: random prompts at once or by a Poisson process, or the requests of a trace."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from forebay.client import Model
from forebay.errors import InvalidArgument

# Tokens behind one entry of a trace's `hash_ids`, as the published Mooncake traces have it.
TRACE_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Job:
    """One request: seconds after the start at which it is due, prompt, output length."""

    at_s: float
    prompt: list[int]
    num_output: int


@dataclass(frozen=True, slots=True)
class TraceLine:
    """One request of a trace; equal leading `hash_ids` mean an equal prefix."""

    timestamp_ms: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


class Words:
    """Reproducible token ids of one model, none of them special."""

    def __init__(self, model: Model, seed: int) -> None:
        self._seed = seed
        # Special tokens stand at either end of vocabularies.
        self._ids = range(model.vocab_size // 8, max(model.vocab_size * 7 // 8, model.vocab_size // 8 + 1))
        self.of = functools.lru_cache(maxsize=4096)(self._of)

    def _of(self, name: str, num_tokens: int) -> tuple[int, ...]:
        """`num_tokens` ids that depend on the seed and `name` alone."""
        return tuple(random.Random(f"{self._seed}/{name}").choices(self._ids, k=num_tokens))


def random_jobs(
    words: Words, num_requests: int, input_length: int, output_length: int, prefix_length: int
) -> list[Job]:
    """All due at once; the first `prefix_length` tokens are the same in all prompts."""
    if not 0 <= prefix_length <= input_length:
        raise InvalidArgument("is part of the prompt", field="prefix_length", limit=input_length)
    prefix = words.of("prefix", prefix_length)
    prompts = (words.of(f"prompt {n}", input_length - prefix_length) for n in range(num_requests))
    return [Job(0.0, [*prefix, *prompt], output_length) for prompt in prompts]


def poisson(jobs: list[Job], rate: float, seed: int) -> list[Job]:
    """The same jobs with exponential gaps, `rate` of them a second on average."""
    if not rate > 0:
        raise InvalidArgument("must be positive", field="rate", got=rate)
    draw, at_s, due = random.Random(seed), 0.0, []
    for job in jobs:
        at_s += draw.expovariate(rate)
        due.append(replace(job, at_s=at_s))
    return due


def read_trace(path: Path, num_requests: int | None) -> list[TraceLine]:
    """The first lines of a JSONL file of {timestamp, input_length, output_length, hash_ids}."""
    lines: list[TraceLine] = []
    with path.open() as file:
        for number, line in enumerate(file, 1):
            if num_requests is not None and len(lines) >= num_requests:
                break
            if line.strip():
                lines.append(_parse(line, f"{path}:{number}"))
    if not lines:
        raise InvalidArgument("has no requests", field=str(path))
    return lines


def trace_jobs(
    words: Words, lines: list[TraceLine], time_scale: float, length_scale: float, max_context: int
) -> list[Job]:
    """Times multiplied by `time_scale` (0.5: twice the load), lengths by `length_scale`.

    What exceeds the context even so is cut: the prompt at its end.
    """
    if time_scale < 0 or not length_scale > 0:
        raise InvalidArgument("scales are positive", field="time_scale, length_scale")
    jobs = []
    for line in lines:
        num_output = min(max(1, round(line.output_length * length_scale)), max_context // 2)
        num_input = min(max(1, round(line.input_length * length_scale)), max_context - num_output)
        at_s = (line.timestamp_ms - lines[0].timestamp_ms) / 1e3 * time_scale
        jobs.append(Job(at_s, list(_prompt(words, line, num_input, length_scale)), num_output))
    return jobs


def _prompt(words: Words, line: TraceLine, num_input: int, length_scale: float) -> Iterator[int]:
    block_tokens = max(1, round(TRACE_BLOCK_TOKENS * length_scale))
    blocks = (words.of(f"block {hash_id}", block_tokens) for hash_id in line.hash_ids)
    prompt = [token_id for block in blocks for token_id in block][:num_input]
    rest = num_input - len(prompt)
    yield from prompt
    # Rounding may leave a few tokens beyond the last block.
    yield from words.of(f"rest {line.hash_ids}", rest) if rest else ()


def _parse(line: str, where: str) -> TraceLine:
    try:
        fields = json.loads(line)
        lengths = int(fields["input_length"]), int(fields["output_length"])
        return TraceLine(float(fields["timestamp"]), *lengths, tuple(fields.get("hash_ids", ())))
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidArgument(
            "is not {timestamp, input_length, output_length, hash_ids}", field=where
        ) from error
