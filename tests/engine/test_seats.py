"""Tokens that the core tells of by slot reach the sequences that have the slots."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.test_front_ends import Routed, request
from vllm.config.vllm import VllmConfig
from vllm.engine.output_processor import OutputProcessor, ProcessedStep
from vllm.engine.processor import Processor
from vllm.engine.seats import QUIET_TOKENS
from vllm.messages.engine import EngineStats, FinishReason, RequestUpdate, StepUpdates
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.transformers_utils.detokenizer import TextDecoder


class Told:
    """An output processor, and what a core would tell it."""

    def __init__(self, config: VllmConfig, decoder: TextDecoder) -> None:
        self.processor = Processor(config.model, decoder.tokenizer)
        self.outputs = OutputProcessor(decoder)
        self.core_ids: dict[str, str] = {}
        self.now_s = 0.0

    def open(self, name: str, kind: str, **params: object) -> None:
        own = SamplingParams(output_kind=RequestOutputKind[kind], max_tokens=400, **params)
        processed = self.processor.process(name, {"prompt_token_ids": [5]}, own)
        self.core_ids[name] = processed.children[0].request_id
        self.outputs.add(processed)

    def step(
        self, *updates: tuple[str, int, int], ended: str = "", **tokens: int
    ) -> dict[str, list[int]]:
        """Updates (name, token, slot), and tokens by slot as s1=7; -> tokens that are told."""
        own = [
            RequestUpdate(
                self.core_ids[name],
                [token],
                finish_reason=FinishReason.LENGTH if name == ended else None,
                slot=slot,
            )
            for name, token, slot in updates
        ]
        self.now_s += 1.0
        slots = np.array([int(slot[1:]) for slot in tokens], np.int32)
        token_ids = np.array(list(tokens.values()), np.int32)
        step = StepUpdates(own, EngineStats(), self.now_s, slots, token_ids)
        self.last: ProcessedStep = self.outputs.process(step)
        return {output.request_id: output.outputs[0].token_ids for output in self.last.outputs}


@pytest.fixture
def told(config: VllmConfig, text_decoder: TextDecoder) -> Told:
    return Told(config, text_decoder)


def test_a_quiet_sequence_has_all_its_tokens_at_the_end(told: Told) -> None:
    told.open("a", "FINAL_ONLY")
    assert told.step(("a", 100, 3)) == {}
    tokens = [101 + i % 50 for i in range(2 * QUIET_TOKENS + 1)]
    for token in tokens:
        assert told.step(s3=token) == {}
    assert told.step(("a", 99, 3), ended="a") == {"a": [100, *tokens, 99]}
    metrics = told.last.outputs[0].metrics
    assert metrics is not None and metrics.last_token_time is not None
    assert metrics.first_token_time is not None
    assert metrics.last_token_time - metrics.first_token_time == pytest.approx(len(tokens) + 1)


def test_streams_hear_of_each_token_in_text(told: Told) -> None:
    told.open("a", "DELTA")
    told.open("b", "CUMULATIVE")
    told.open("c", "DELTA", stop="no such text")
    told.step(("a", 100, 1), ("b", 110, 2), ("c", 120, 3))
    assert told.step(s1=101, s2=111, s3=121) == {"a": [101], "b": [110, 111], "c": [121]}
    texts = {output.request_id: output.outputs[0].text for output in told.last.outputs}
    decoder = told.outputs.decoder
    assert decoder is not None
    assert texts["a"] == decoder.decode([101]) and texts["b"] == decoder.decode([110, 111])
    assert told.last.iteration.num_generation_tokens == 3
    assert told.last.iteration.inter_token_s == [1.0] * 3


def test_a_stop_string_ends_a_sequence_that_the_core_goes_on_with(told: Told) -> None:
    decoder = told.outputs.decoder
    assert decoder is not None
    told.open("a", "DELTA", stop=decoder.decode([300]).strip())
    told.step(("a", 100, 1))
    assert told.step(s1=300) == {"a": [300]}
    assert told.last.outputs[0].finished and told.last.to_abort == [told.core_ids["a"]]
    assert told.step(s1=301) == {}, "the core has not heard yet"


def test_a_slot_that_another_request_takes_over_brings_it_no_old_tokens(told: Told) -> None:
    told.open("a", "FINAL_ONLY")
    told.open("b", "FINAL_ONLY")
    told.step(("a", 100, 1))
    told.step(s1=101)
    told.step(("b", 110, 1))  # "a" was preempted
    told.step(("a", 102, 2), s1=111)
    told.step(s1=112, s2=103)
    assert told.step(("a", 104, 2), ended="a") == {"a": [100, 101, 102, 103, 104]}
    assert told.step(("b", 113, 1), ended="b") == {"b": [110, 111, 112, 113]}


def test_tokens_of_a_request_nobody_knows_go_to_nobody(told: Told) -> None:
    told.open("a", "FINAL_ONLY")
    told.core_ids["stranger"] = "stranger"
    told.step(("a", 100, 1))
    told.step(("stranger", 110, 1))  # "a" was preempted for one that was aborted here
    told.step(s1=111)
    told.step(("a", 101, 2))
    assert told.step(("a", 102, 2), ended="a") == {"a": [100, 101, 102]}


def test_an_aborted_sequence_has_the_tokens_so_far(told: Told) -> None:
    told.open("a", "FINAL_ONLY")
    told.step(("a", 100, 1))
    told.step(s1=101)
    _, (output,) = told.outputs.abort(["a"])
    assert output.outputs[0].token_ids == [100, 101]
    assert told.step(s1=102) == {}


def test_each_front_end_hears_of_its_own_slots() -> None:
    routed = Routed(3)
    for front_end, name in ((1, "a"), (2, "b")):
        assert routed.routes.take(front_end, request(name))
    routed.step(RequestUpdate("a", [5], slot=100), RequestUpdate("b", [6], slot=7))
    slots, token_ids = np.array([7, 100], np.int32), np.array([16, 15], np.int32)
    routed.routes.send(StepUpdates([], EngineStats(num_running=2), 0.0, slots, token_ids))
    sent = dict(routed.link.take_sent())
    found = {
        front_end: (message.slots.tolist(), message.token_ids.tolist())
        for front_end, message in sent.items()
        if isinstance(message, StepUpdates)
    }
    assert found == {1: ([100], [15]), 2: ([7], [16])}
