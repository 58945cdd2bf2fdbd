"""Sends the jobs of a workload and measures each as its client sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from forebay.bench.workload import Job
from forebay.client import AsyncForebay, CallError, Delta


@dataclass(slots=True)
class Sample:
    """One request. Times start when it was due, not when it was sent: a late sender hides no queue.

    `gaps_s` are the pauses between deltas; `stages` the receipt's milliseconds; `error` a reason or "".
    """

    started_s: float
    ttft_s: float = 0.0
    e2e_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    num_prompt: int = 0
    num_cached: int = 0
    num_output: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    total_ms: float = 0.0
    error: str = ""

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first; 0 for a single token."""
        return (self.e2e_s - self.ttft_s) / (self.num_output - 1) if self.num_output > 1 else 0.0


class Bench:
    """One client under load; `on_end` is told of every request that ended."""

    def __init__(
        self, client: AsyncForebay, model: str, on_end: Callable[[Sample], None] = lambda sample: None
    ) -> None:
        self._client, self._model, self._on_end = client, model, on_end

    async def closed(self, jobs: Iterable[Job], concurrency: int) -> list[Sample]:
        """`concurrency` requests are always live: each one that ends makes room for the next."""
        queue, samples = iter(jobs), list[Sample]()

        async def worker() -> None:
            for job in queue:
                samples.append(await self._measure(job, time.perf_counter()))

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return samples

    async def open(self, jobs: Sequence[Job]) -> list[Sample]:
        """Each request when it is due, whatever the others do."""
        start, tasks = time.perf_counter(), []
        for job in sorted(jobs, key=lambda job: job.at_s):
            await asyncio.sleep(start + job.at_s - time.perf_counter())
            tasks.append(asyncio.create_task(self._measure(job, start + job.at_s)))
        return list(await asyncio.gather(*tasks))

    async def _measure(self, job: Job, due: float) -> Sample:
        sample, last = Sample(due), 0.0
        stream = self._client.generate(
            job.prompt,
            model=self._model,
            max_tokens=job.num_output,
            temperature=0.0,
            ignore_eos=True,
            text_output=False,
        )
        try:
            async with stream:
                async for delta in stream:
                    last = _take(sample, delta, last)
        except CallError as error:
            sample.error = error.reason
        sample.e2e_s = time.perf_counter() - due
        self._on_end(sample)
        return sample


def _take(sample: Sample, delta: Delta, last: float) -> float:
    """Adds a delta; returns the moment of the last one that had tokens."""
    if delta.usage is not None and delta.receipt is not None:
        sample.num_prompt, sample.num_cached = delta.usage.prompt_tokens, delta.usage.cached_tokens
        sample.total_ms = delta.receipt.total_ms
        sample.stages = {stage.name: stage.ms for stage in delta.receipt.stages}
    if not delta.token_ids:
        return last
    now = time.perf_counter()
    if sample.num_output:
        sample.gaps_s.append(now - last)
    else:
        sample.ttft_s = now - sample.started_s
    sample.num_output += len(delta.token_ids)
    return now
