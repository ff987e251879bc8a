"""OutputProcessor: from what engine steps did to the outputs that callers see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vllm.engine.logprobs import TokenText, logprob_dicts
from vllm.engine.processor import ProcessedRequest
from vllm.engine.seats import Seats
from vllm.errors import BadRequest
from vllm.messages.engine import FinishReason, RequestUpdate, StepUpdates
from vllm.metrics.stats import FinishedCall, FinishedRequest, IterationStats
from vllm.outputs import (
    CompletionOutput,
    PromptLogprobs,
    RequestMetrics,
    RequestOutput,
    SampleLogprobs,
)
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.transformers_utils.detokenizer import NoText, SequenceText, TextDecoder


@dataclass(slots=True)
class ProcessedStep:
    """What a step means to the callers and to the core."""

    outputs: list[RequestOutput] = field(default_factory=list)
    to_abort: list[str] = field(default_factory=list)  # the core's ids: a stop string ended them
    iteration: IterationStats = field(default_factory=IterationStats)


class OutputSequence:
    """One sequence of a request, as far as it is known. Owned by its OpenRequest."""

    __slots__ = (
        "core",
        "cumulative_logprob",
        "finish_reason",
        "first_token_s",
        "id",
        "index",
        "last_token_s",
        "logprobs",
        "num_sent",
        "queue_s",
        "request",
        "seats",
        "slot",
        "stop_reason",
        "text",
        "token_ids",
    )

    def __init__(self, request: OpenRequest, core_id: str, index: int, text: SequenceText) -> None:
        self.request = request
        self.id = core_id
        self.index = index
        self.text = text
        self.token_ids: list[int] = []
        self.logprobs: SampleLogprobs = []
        self.cumulative_logprob = 0.0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.num_sent = 0  # tokens in outputs so far
        self.queue_s = 0.0
        self.first_token_s = 0.0  # time.monotonic(); 0: there is none yet
        self.last_token_s = 0.0
        self.slot = 0  # in its core, as far as it was said
        self.core = 0  # which one of those behind the front end, likewise
        self.seats: Seats[OutputSequence] | None = None  # those of its core, with the first slot

    @property
    def is_quiet(self) -> bool:
        """Nothing is told or decided before the core's last word."""
        params = self.request.params
        return params.output_kind is RequestOutputKind.FINAL_ONLY and not params.stop_strings

    def take_tokens(self, token_ids: list[int], now_s: float) -> None:
        """Append tokens behind which the core goes on, up to one that completes a stop string."""
        num_taken = self.text.push(token_ids)
        if self.text.matched is not None:
            token_ids = token_ids[:num_taken]
            self._end(FinishReason.STOP, None)
        self.token_ids += token_ids
        self.last_token_s = now_s

    def take_over(self, update: RequestUpdate) -> None:
        """Append an update's tokens, up to the one that completes a stop string."""
        token_ids = update.token_ids
        reason, stop_reason = update.finish_reason, update.stop_reason
        if token_ids:
            # A stop token is part of the tokens but not of the text.
            hidden = (
                reason is FinishReason.STOP and not self.request.params.include_stop_str_in_output
            )
            num_taken = self.text.push(token_ids[:-1] if hidden else token_ids)
            if self.text.matched is not None:
                token_ids = token_ids[:num_taken]
                reason, stop_reason = FinishReason.STOP, None
            self.token_ids += token_ids
            if update.logprobs is not None:
                self._add_logprobs(update, len(token_ids))
        if reason is not None:
            self._end(reason, stop_reason)
            if reason in (FinishReason.ERROR, FinishReason.REJECTED):
                self.stop_reason = update.error

    def _end(self, reason: FinishReason, stop_reason: int | None) -> None:
        self.text.finish()
        self.finish_reason = reason
        self.stop_reason = self.text.matched or stop_reason

    def _add_logprobs(self, update: RequestUpdate, count: int) -> None:
        arrays = update.logprobs
        assert arrays is not None and len(arrays.ranks) == len(update.token_ids), update
        self.cumulative_logprob += float(arrays.logprobs[:count, 0].sum())
        if self.request.params.logprobs is not None:
            self.logprobs += logprob_dicts(arrays, self.request.token_text)[:count]

    def is_due(self, interval: int) -> bool:
        """There are enough new tokens, or the first or last ones, to tell the caller."""
        num_new = len(self.token_ids) - self.num_sent
        is_first = self.num_sent == 0 and num_new > 0
        return self.finish_reason is not None or is_first or num_new >= interval

    def output(self, is_delta: bool) -> CompletionOutput:
        is_last = self.finish_reason is not None
        begin = self.num_sent if is_delta else 0
        self.num_sent = len(self.token_ids)
        params = self.request.params
        wants_logprobs = params.logprobs is not None
        return CompletionOutput(
            index=self.index,
            text=self.text.take(is_last) if is_delta else self.text.visible(is_last),
            token_ids=self.token_ids[begin:],
            cumulative_logprob=self.cumulative_logprob if wants_logprobs else None,
            logprobs=self.logprobs[begin:] if wants_logprobs else None,
            finish_reason=None if self.finish_reason is None else str(self.finish_reason),
            stop_reason=self.stop_reason,
        )


class OpenRequest:
    """One call of generate that has not ended: its sequences and what they share."""

    def __init__(self, source: ProcessedRequest, decoder: TextDecoder | None) -> None:
        self.id = source.request_id
        self.prompt = source.prompt
        self.prompt_token_ids = source.prompt_token_ids
        self.params: SamplingParams = source.params
        self.metrics = RequestMetrics(source.arrival_time_s)
        self.trace_headers = source.trace_headers
        self.num_cached_tokens: int | None = None
        self.prompt_logprobs: PromptLogprobs | None = None
        if self.params.prompt_logprobs is not None:
            self.prompt_logprobs = [None]
        self.prompt_logprobs_sent = False
        # Tokens come one at a time and at once, and with nothing else.
        self.is_plain = (
            self.params.output_kind is RequestOutputKind.DELTA
            and self.params.num_sequences == 1
            and self.params.logprobs is None
            and self.params.prompt_logprobs is None
        )
        self.token_text: TokenText = _no_text
        if decoder is not None and self.params.detokenize:
            self.token_text = decoder.token_text
        self.sequences = []
        for index, child in enumerate(source.children):
            stream = (
                NoText() if decoder is None else decoder.stream(self.params, self.prompt_token_ids)
            )
            text = SequenceText(stream, self.params)
            self.sequences.append(OutputSequence(self, child.request_id, index, text))

    @property
    def is_finished(self) -> bool:
        if len(self.sequences) == 1:
            return self.sequences[0].finish_reason is not None
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    def plain_delta(self, sequence: OutputSequence, token_ids: list[int]) -> RequestOutput:
        """`output` where `is_plain` and nothing but these tokens is new."""
        sequence.num_sent += len(token_ids)
        choice = CompletionOutput(sequence.index, sequence.text.take(is_last=False), token_ids)
        return RequestOutput(
            self.id,
            self.prompt,
            self.prompt_token_ids,
            None,
            [choice],
            metrics=self.metrics,
            num_cached_tokens=self.num_cached_tokens,
        )

    def output(self, changed: Iterable[OutputSequence], interval: int) -> RequestOutput | None:
        """What to tell the caller now that `changed` have changed, if anything."""
        finished = self.is_finished
        kind = self.params.output_kind
        ranked = self.params.num_sequences > self.params.n  # which ones count shows at the end
        if not finished and (kind is RequestOutputKind.FINAL_ONLY or ranked):
            return None
        due = [sequence for sequence in changed if sequence.is_due(interval)]
        if not due:
            return None
        is_delta = kind is RequestOutputKind.DELTA
        outputs = [s.output(is_delta) for s in (due if is_delta else self.sequences)]
        if ranked:
            outputs = self._best(outputs)
        return RequestOutput(
            request_id=self.id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=self._due_prompt_logprobs(is_delta, finished),
            outputs=outputs,
            finished=finished,
            metrics=self.metrics,
            num_cached_tokens=self.num_cached_tokens,
        )

    def _due_prompt_logprobs(self, is_delta: bool, finished: bool) -> PromptLogprobs | None:
        """All of them or none: another sequence may draw before the first has computed them."""
        values = self.prompt_logprobs
        if values is None or (is_delta and self.prompt_logprobs_sent):
            return None
        if len(values) < len(self.prompt_token_ids) and not finished:
            return None
        self.prompt_logprobs_sent = True
        return list(values)

    def _best(self, outputs: list[CompletionOutput]) -> list[CompletionOutput]:
        scores = [sequence.cumulative_logprob for sequence in self.sequences]
        order = sorted(range(len(outputs)), key=lambda i: -scores[i])[: self.params.n]
        best = [outputs[i] for i in order]
        for index, output in enumerate(best):
            output.index = index
        return best


class OutputProcessor:
    """Owner of all open requests. Not thread-safe."""

    def __init__(self, decoder: TextDecoder | None, stream_interval: int = 1) -> None:
        self.set_decoder(decoder)
        self.stream_interval = stream_interval
        self.requests: dict[str, OpenRequest] = {}  # by the caller's id
        self._sequences: dict[str, OutputSequence] = {}  # by the core's id
        self._seats: list[Seats[OutputSequence]] = []  # by core
        # By core, for the statistics of its next step.
        self._aborted: dict[int, IterationStats] = {}
        self.on_finished: Callable[[OpenRequest], None] = _ignore
        # Steps are timed by the monotonic clock, requests by that of the calendar.
        self._epoch_s = time.time() - time.monotonic()

    @property
    def has_requests(self) -> bool:
        return bool(self.requests)

    def add(self, source: ProcessedRequest) -> None:
        """Raises BadRequest for an id that is in use."""
        if source.request_id in self.requests:
            raise BadRequest(
                f"request id {source.request_id!r} is in use by a request that has not ended",
                "request_id",
            )
        request = OpenRequest(source, self.decoder)
        self.requests[request.id] = request
        for sequence in request.sequences:
            self._sequences[sequence.id] = sequence

    def set_decoder(self, decoder: TextDecoder | None) -> None:
        """For requests from now on; without one outputs have no text."""
        self.decoder = decoder

    def process(self, step: StepUpdates) -> ProcessedStep:
        """Apply a step. Updates of requests that have ended here are dropped."""
        result = ProcessedStep()
        if step.core in self._aborted:
            result.iteration = self._aborted.pop(step.core)
        changed: dict[OpenRequest, list[OutputSequence]] = {}
        seats = self._seats_of(step.core)
        for update in step.updates:
            sequence = self._sequences.get(update.request_id)
            if update.slot:
                self._seat(seats, update.slot, sequence, step.time_s)
            if sequence is None:
                continue
            sequence.core = step.core
            self._catch_up(sequence)
            sequence.take_over(update)
            self._note_prompt(sequence, update)
            if update.token_ids:
                self._time(sequence, update, step.time_s, result.iteration)
            if sequence.finish_reason is not None:
                self._end(sequence, step.time_s, result, is_known=update.finish_reason is not None)
            changed.setdefault(sequence.request, []).append(sequence)
        if len(step.slots):
            self._process_tokens(step, result, changed)
        for request, sequences in changed.items():
            output = request.output(dict.fromkeys(sequences), self.stream_interval)
            if output is not None:
                result.outputs.append(output)
        return result

    def _seats_of(self, core: int) -> Seats[OutputSequence]:
        while core >= len(self._seats):
            self._seats.append(Seats())
        return self._seats[core]

    def _process_tokens(
        self,
        step: StepUpdates,
        result: ProcessedStep,
        changed: dict[OpenRequest, list[OutputSequence]],
    ) -> None:
        """Tokens of requests to which nothing else happened."""
        seats, now_s = self._seats_of(step.core), step.time_s
        slots, token_ids = step.slots, step.token_ids
        is_taken = seats.is_taken[slots]
        if not is_taken.all():
            slots, token_ids = slots[is_taken], token_ids[is_taken]
        result.iteration.num_generation_tokens += len(slots)
        result.iteration.inter_token_s += (now_s - seats.last_token_s[slots]).tolist()
        seats.last_token_s[slots] = now_s
        is_quiet = seats.is_quiet[slots]
        for slot in seats.gather(slots[is_quiet], token_ids[is_quiet]):
            self._catch_up(_seated(seats, slot))
        if is_quiet.all():
            return
        is_told = ~is_quiet
        calendar_s, is_immediate = now_s + self._epoch_s, self.stream_interval == 1
        for slot, token_id in zip(
            slots[is_told].tolist(), token_ids[is_told].tolist(), strict=True
        ):
            sequence = _seated(seats, slot)
            request = sequence.request
            token_list = [token_id]
            sequence.take_tokens(token_list, now_s)
            request.metrics.last_token_time = calendar_s
            if sequence.finish_reason is not None:
                self._end(sequence, now_s, result, is_known=False)
            elif request.is_plain and is_immediate and request not in changed:
                result.outputs.append(request.plain_delta(sequence, token_list))
                continue
            changed.setdefault(request, []).append(sequence)

    def _seat(
        self,
        seats: Seats[OutputSequence],
        slot: int,
        sequence: OutputSequence | None,
        now_s: float,
    ) -> None:
        """`sequence`, None for one that has ended here, has the slot now."""
        if slot < len(seats.sequences):
            before = seats.sequences[slot]
            if before is not None:
                self._catch_up(before)
        if sequence is not None:
            sequence.seats = seats
            if sequence.slot:
                self._catch_up(sequence)
                if sequence.slot != slot:
                    seats.put(sequence.slot, None, now_s)
        seats.put(slot, sequence, now_s)

    def _catch_up(self, sequence: OutputSequence) -> None:
        """Take the tokens that have gathered while nobody asked."""
        seats = sequence.seats
        if seats is None or not sequence.slot:
            return
        token_ids = seats.take(sequence.slot)
        if token_ids:
            last_s = float(seats.last_token_s[sequence.slot])
            sequence.take_tokens(token_ids, last_s)
            sequence.request.metrics.last_token_time = last_s + self._epoch_s

    def _end(
        self, sequence: OutputSequence, now_s: float, result: ProcessedStep, is_known: bool
    ) -> None:
        """A sequence has ended; `is_known`: to the core."""
        if not is_known:
            result.to_abort.append(sequence.id)
        self._close(sequence, now_s, result.iteration)

    def abort(self, request_ids: Iterable[str]) -> tuple[list[str], list[RequestOutput]]:
        """End requests from here: the core's ids to abort, and the last outputs.

        Unknown ids have ended already.
        """
        core_ids: list[str] = []
        outputs: list[RequestOutput] = []
        for request_id in request_ids:
            request = self.requests.get(request_id)
            if request is None:
                continue
            open_sequences = [s for s in request.sequences if s.finish_reason is None]
            for sequence in open_sequences:
                self._catch_up(sequence)
                sequence.text.finish()
                sequence.finish_reason = FinishReason.ABORT
                iteration = self._aborted.setdefault(sequence.core, IterationStats())
                self._close(sequence, time.monotonic(), iteration)
            core_ids += [sequence.id for sequence in open_sequences]
            output = request.output(open_sequences, self.stream_interval)
            if output is not None:
                outputs.append(output)
        return core_ids, outputs

    def _note_prompt(self, sequence: OutputSequence, update: RequestUpdate) -> None:
        request = sequence.request
        if update.prompt_logprobs is not None and request.prompt_logprobs is not None:
            request.prompt_logprobs += logprob_dicts(update.prompt_logprobs, request.token_text)
        if update.token_ids and request.num_cached_tokens is None:
            request.num_cached_tokens = update.num_cached_tokens

    def _time(
        self,
        sequence: OutputSequence,
        update: RequestUpdate,
        now_s: float,
        iteration: IterationStats,
    ) -> None:
        metrics = sequence.request.metrics
        iteration.num_generation_tokens += len(update.token_ids)
        if not sequence.first_token_s:
            sequence.first_token_s = now_s
            sequence.queue_s = update.queue_s
            iteration.num_prompt_tokens += len(sequence.request.prompt_token_ids)
            arrival_s = metrics.arrival_time - self._epoch_s
            iteration.time_to_first_token_s.append(max(0.0, now_s - arrival_s))
            if metrics.first_token_time is None:
                metrics.first_token_time = now_s + self._epoch_s
                metrics.time_in_queue = update.queue_s
                metrics.first_scheduled_time = metrics.arrival_time + update.queue_s
        else:
            iteration.inter_token_s.append(now_s - sequence.last_token_s)
        sequence.last_token_s = now_s
        metrics.last_token_time = now_s + self._epoch_s

    def _close(self, sequence: OutputSequence, now_s: float, iteration: IterationStats) -> None:
        """Forget a sequence that has ended, and with the last one its request."""
        assert sequence.finish_reason is not None
        request = sequence.request
        del self._sequences[sequence.id]
        if sequence.seats is not None and sequence.slot:
            sequence.seats.put(sequence.slot, None, now_s)
        if request.is_finished:
            del self.requests[request.id]
            request.metrics.finished_time = now_s + self._epoch_s
            iteration.calls.append(
                FinishedCall(request.params.n, max(len(s.token_ids) for s in request.sequences))
            )
            self.on_finished(request)
        last_s = sequence.last_token_s or now_s
        first_s = sequence.first_token_s or last_s
        arrival_s = request.metrics.arrival_time - self._epoch_s
        finished = FinishedRequest(
            reason=sequence.finish_reason,
            e2e_s=max(0.0, last_s - arrival_s),
            queue_s=sequence.queue_s,
            prefill_s=max(0.0, first_s - arrival_s - sequence.queue_s),
            decode_s=last_s - first_s,
            num_prompt_tokens=len(request.prompt_token_ids),
            num_generation_tokens=len(sequence.token_ids),
            max_tokens=request.params.max_tokens or 0,
            num_cached_tokens=request.num_cached_tokens or 0,
        )
        iteration.finished.append(finished)


def _seated(seats: Seats[OutputSequence], slot: int) -> OutputSequence:
    sequence = seats.sequences[slot]
    assert sequence is not None, slot
    return sequence


def _ignore(request: OpenRequest) -> None:
    """Nobody wants to know."""


def _no_text(token_id: int) -> None:
    return None
