"""Continuous batching over the slot cache: one thread owns the model, sequences join and leave between passes.

A sequence that reaches a chunk border waits for its neighbours while the others go on; the chunks of all sequences that
are due together leave as one search for each snapshot.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from openbook_core.errors import OverloadedError, UnavailableError
from openbook_core.telemetry import get_logger
from openbook_core.tokenizer import Tokenizer
from openbook_generator.job import FinishReason, Job, Piece
from openbook_generator.metrics import Metrics
from openbook_generator.retrieval import FoundNeighbors
from openbook_model import Neighbors, RetroModel
from openbook_prompt.passage import Pin

logger = get_logger(__name__)

Search = Callable[[Pin, Sequence[str], int, int], FoundNeighbors]


class Engine:
    """Decodes jobs; `search` is called on threads of its own. `submit` and `close` may be called from any thread."""

    def __init__(
        self,
        model: RetroModel,
        tokenizer: Tokenizer,
        search: Search,
        metrics: Metrics,
        *,
        slots: int,
        max_context: int,
        max_queue: int,
        retry_after_s: float,
        max_neighbors: int,
        stop_ids: frozenset[int],
    ) -> None:
        self._model, self._tokenizer, self._search, self._metrics = model, tokenizer, search, metrics
        self._cache = model.new_cache(slots, max_context, num_neighbors=max_neighbors)
        self._slots, self._max_queue, self._retry_after_s = slots, max_queue, retry_after_s
        self._stop_ids = stop_ids
        self._free = list(range(slots))
        self._active: list[Job] = []
        self._waiting: deque[Job] = deque()
        self._answers: deque[tuple[list[tuple[Job, int]], Future[FoundNeighbors]]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._reserved = 0
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="neighbors")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def reserve(self) -> None:
        """Take a place before any other work is done for a request; raises OverloadedError where there is none."""
        with self._wake:
            if self._closed:
                raise UnavailableError("the generator is shutting down; ask another one")
            if self._reserved >= self._slots + self._max_queue:
                self._metrics.refused.inc()
                raise OverloadedError(
                    f"{self._reserved} requests are in work ({self._slots} slots, {self._max_queue} places to wait); "
                    f"try again in {self._retry_after_s:g} s",
                    retry_after_s=self._retry_after_s,
                )
            self._reserved += 1

    def release(self) -> None:
        """Give a reserved place back, once its request is over."""
        with self._wake:
            self._reserved -= 1

    def submit(self, job: Job) -> None:
        """Queue a job whose place is reserved."""
        with self._wake:
            self._waiting.append(job)
            self._wake.notify()

    def close(self) -> None:
        """Stop after the current pass; jobs that are not finished get an UnavailableError."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._answers or self._waiting or self._active)
                if self._closed:
                    break
            try:
                worked = self._turn()
            except Exception as error:
                logger.exception("a pass of the model failed")
                for job in list(self._active):
                    self._fail(job, error)
                continue
            if not worked:
                with self._wake:
                    self._wake.wait_for(self._has_news, timeout=0.05)
        for job in [*self._active, *self._waiting]:
            self._fail(job, UnavailableError("the generator is shutting down; ask another one"))

    def _has_news(self) -> bool:
        return self._closed or bool(self._answers) or bool(self._waiting and self._free)

    def _turn(self) -> bool:
        for job in [job for job in self._active if job.cancelled]:
            self._metrics.cancelled.inc()
            self._leave(job)
        self._admit()
        self._collect()
        self._ask()
        ready = [job for job in self._active if not job.asking]
        prompt = next((job for job in ready if job.fed == 0), None)
        if prompt is not None:
            self._metrics.prompt_tokens.inc(len(prompt.prompt))
            self._advance([prompt], "prefill", self._prefill)
        running = [job for job in ready if job.fed > 0 and job in self._active and job is not prompt]
        if running:
            self._advance(running, "step", self._step)
        self._metrics.running.set(len(self._active))
        self._metrics.queued.set(len(self._waiting))
        return prompt is not None or bool(running)

    def _admit(self) -> None:
        with self._wake:
            while self._waiting and self._free:
                job = self._waiting.popleft()
                if job.cancelled:
                    self._metrics.cancelled.inc()
                    continue
                job.start(self._free.pop(0), self._cache.chunk_length)
                self._active.append(job)

    def _collect(self) -> None:
        while True:
            with self._wake:
                if not self._answers:
                    return
                jobs, future = self._answers.popleft()
            error = future.exception()
            for place, (job, count) in enumerate(jobs):
                if job not in self._active:
                    continue
                if error is not None:
                    self._fail(job, error if isinstance(error, Exception) else RuntimeError(repr(error)))
                    continue
                first = sum(earlier for _, earlier in jobs[:place])
                found, rows = future.result(), slice(first, first + count)
                ids_LKR, lengths_LK = found.neighbors.ids_LKR, found.neighbors.lengths_LK
                assert lengths_LK is not None
                own = Neighbors(ids_LKR[rows], lengths_LK[rows])
                job.answer(own, found.chunk_ids[rows], self._cache.chunk_length)

    def _ask(self) -> None:
        groups: dict[tuple[Pin, int], list[tuple[Job, list[str]]]] = {}
        for job in self._active:
            if job.pin is None or job.asking or job.found is not None or not self._cache.cross_attention:
                continue
            chunks = job.due_chunks(self._cache.chunk_length)
            if chunks:
                texts = [self._tokenizer.decode(chunk, skip_special=True) for chunk in chunks]
                groups.setdefault((job.pin, job.neighbors), []).append((job, texts))
        for (pin, neighbors), asked in groups.items():
            texts = [text for _, chunk_texts in asked for text in chunk_texts]
            jobs = [(job, len(chunk_texts)) for job, chunk_texts in asked]
            for job, _ in jobs:
                job.asking = True
            self._metrics.searches.inc()
            self._metrics.chunks.inc(len(texts))
            # Asked in the name of the first of them, whose request id and trace it carries.
            ask = jobs[0][0].context.copy().run
            future = self._pool.submit(ask, self._search, pin, texts, neighbors, self._cache.neighbor_length)
            future.add_done_callback(lambda done, jobs=jobs: self._answered(jobs, done))  # type: ignore[misc]

    def _answered(self, jobs: list[tuple[Job, int]], future: Future[FoundNeighbors]) -> None:
        if future.cancelled():
            return
        with self._wake:
            self._answers.append((jobs, future))
            self._wake.notify()

    def _prefill(self, jobs: list[Job]) -> Tensor:
        return self._model.prefill(
            self._cache,
            [job.slot for job in jobs],
            [torch.tensor(job.prompt) for job in jobs],
            [job.found for job in jobs],
            [job.phase for job in jobs],
        )

    def _step(self, jobs: list[Job]) -> Tensor:
        tokens_N = torch.tensor([job.generated[-1] for job in jobs])
        return self._model.step(self._cache, [job.slot for job in jobs], tokens_N, [job.found for job in jobs])

    def _advance(self, jobs: list[Job], work: str, run: Callable[[list[Job]], Tensor]) -> None:
        started = time.perf_counter()
        try:
            logits_NV = run(jobs)
        except Exception as error:
            logger.exception("%s of %d sequences failed", work, len(jobs))
            for job in jobs:
                self._fail(job, error)
            return
        self._metrics.step_seconds.labels(work).observe(time.perf_counter() - started)
        for job, logits_V in zip(jobs, logits_NV, strict=True):
            job.fed += len(job.next_tokens)
            job.found = None
            self._take(job, job.sampler.choose(logits_V))

    def _take(self, job: Job, token: int) -> None:
        reason: FinishReason | None = None
        if token in self._stop_ids:
            reason = "stop"
        else:
            job.generated.append(token)
            self._metrics.tokens.inc()
            if len(job.generated) >= job.max_tokens or self._cache.room(job.slot) < 1:
                reason = "length"
        text = self._tokenizer.decode(job.generated, skip_special=True)
        piece = job.stream.push(text, last=reason is not None)
        if job.stream.stopped:
            reason = "stop"
        if reason is not None:
            self._leave(job)
        if piece or reason is not None:
            job.emit(Piece(piece, len(job.generated), reason))

    def _fail(self, job: Job, error: Exception) -> None:
        self._leave(job)
        job.emit(error)

    def _leave(self, job: Job) -> None:
        if job in self._active:
            self._active.remove(job)
            self._cache.release(job.slot)
            self._free.append(job.slot)
            self._free.sort()
