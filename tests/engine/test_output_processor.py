"""What callers see of a request, with an engine core that follows a script."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest

from tests.conftest import LogLines
from tests.engine.scripted_core import Script, ScriptedCore, counting
from vllm.config.vllm import VllmConfig
from vllm.engine.client import InProcessClient
from vllm.engine.front_end import IntervalLog
from vllm.engine.llm_engine import LLMEngine
from vllm.errors import BadRequest, EngineDeadError, NotAvailable
from vllm.messages.engine import EngineRequest, EngineStats, FinishReason
from vllm.metrics.stats import IterationStats
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams


class Engine(LLMEngine):
    core: ScriptedCore

    def text_ids(self, text: str) -> list[int]:
        return self.get_tokenizer().encode(text, add_special_tokens=False)

    def run(self) -> list[RequestOutput]:
        outputs = []
        while self.has_unfinished_requests():
            outputs += self.step()
        return outputs


def make_engine(config: VllmConfig, script: Script = counting) -> Engine:
    client = InProcessClient(config, lambda config: ScriptedCore(config, script))
    engine = Engine(config, client)
    assert isinstance(client.core, ScriptedCore)
    engine.core = client.core
    return engine


@pytest.fixture
def engine(config: VllmConfig) -> Engine:
    return make_engine(config)


def says(engine: Engine, text: str) -> None:
    """From now on every request is answered with `text`."""
    engine.core.script = lambda request: engine.text_ids(text)


def params(kind: str = "CUMULATIVE", **values: Any) -> SamplingParams:
    values.setdefault("max_tokens", 100)
    return SamplingParams(output_kind=RequestOutputKind[kind], **values)


STORY = "Once upon a time there was a fox. The end of it."


def test_cumulative_outputs_hold_all_text_so_far(engine: Engine) -> None:
    says(engine, STORY)
    engine.add_request("a", "x", params())
    texts = [output.outputs[0].text for output in engine.run()]
    assert texts[-1] == STORY
    assert all(STORY.startswith(text) for text in texts)
    assert texts == sorted(texts, key=len)


def test_deltas_hold_what_is_new(engine: Engine) -> None:
    says(engine, STORY)
    engine.add_request("a", "x", params("DELTA"))
    outputs = engine.run()
    assert "".join(output.outputs[0].text for output in outputs) == STORY
    ids = [token for output in outputs for token in output.outputs[0].token_ids]
    assert ids == engine.text_ids(STORY)
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]


def test_final_only_is_one_output(engine: Engine) -> None:
    says(engine, STORY)
    engine.add_request("a", "x", params("FINAL_ONLY"))
    (output,) = engine.run()
    assert output.finished
    assert output.prompt == "x"
    choice = output.outputs[0]
    assert (choice.text, choice.finish_reason, choice.stop_reason) == (STORY, "length", None)


@pytest.mark.parametrize("kind", ["CUMULATIVE", "DELTA", "FINAL_ONLY"])
def test_a_stop_string_ends_the_request_here_and_in_the_core(engine: Engine, kind: str) -> None:
    says(engine, STORY)
    engine.add_request("a", "x", params(kind, stop=["The end", "fox jumps"]))
    outputs = engine.run()
    engine.settle()
    texts = [output.outputs[0].text for output in outputs]
    cut = "Once upon a time there was a fox. "
    assert ("".join(texts) if kind == "DELTA" else texts[-1]) == cut
    choice = outputs[-1].outputs[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "The end")
    assert len(engine.core.aborted) == 1
    assert not engine.core.has_work


def test_a_stop_string_may_stay_in_the_text(engine: Engine) -> None:
    says(engine, STORY)
    engine.add_request("a", "x", params(stop="end", include_stop_str_in_output=True))
    assert engine.run()[-1].outputs[0].text == "Once upon a time there was a fox. The end"


def test_a_stop_token_is_in_the_tokens_and_not_in_the_text(engine: Engine) -> None:
    engine.add_request("a", "x", params(stop_token_ids=[103]))
    choice = engine.run()[-1].outputs[0]
    assert choice.token_ids == [100, 101, 102, 103]
    assert choice.text == engine.get_tokenizer().decode([100, 101, 102])
    assert (choice.finish_reason, choice.stop_reason) == ("stop", 103)


def test_tokens_after_a_stop_string_in_the_same_update_are_dropped(engine: Engine) -> None:
    says(engine, STORY)
    engine.add_request("a", "x", params("FINAL_ONLY", stop="fox"))
    engine.core.is_terse = False
    core_step = engine.core.step

    def three_at_once() -> Any:
        steps = [step for _ in range(3) if engine.core.has_work and (step := core_step())]
        first = steps[0].updates[0]
        for step in steps[1:]:
            first.token_ids += step.updates[0].token_ids
        return steps[0]

    engine.core.step = three_at_once  # type: ignore[method-assign]
    choice = engine.run()[-1].outputs[0]
    assert choice.text == "Once upon a time there was a "
    assert "fox" in engine.get_tokenizer().decode(choice.token_ids)
    assert "." not in engine.get_tokenizer().decode(choice.token_ids)


@pytest.mark.parametrize("kind", ["CUMULATIVE", "DELTA", "FINAL_ONLY"])
def test_several_sequences_come_back_as_one_request(engine: Engine, kind: str) -> None:
    def script(request: EngineRequest) -> list[int]:
        index = int(request.request_id.partition("_")[0])
        return [200 + index] * (index + 2)

    engine.core.script = script
    engine.add_request("a", "x", params(kind, n=3))
    outputs = engine.run()
    assert {output.request_id for output in outputs} == {"a"}
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    tokens: dict[int, list[int]] = {}
    for output in outputs:
        for choice in output.outputs:
            known = tokens.get(choice.index, []) if kind == "DELTA" else []
            tokens[choice.index] = known + choice.token_ids
    assert tokens == {0: [200] * 2, 1: [201] * 3, 2: [202] * 4}
    assert len({request.params.seed for request in engine.core.seen}) == 3


def test_best_of_returns_the_most_likely_sequences(engine: Engine) -> None:
    def script(request: EngineRequest) -> list[int]:
        index = int(request.request_id.partition("_")[0])
        return [200 + index] * (5 - index)  # each token costs 0.5: shorter is likelier

    engine.core.script = script
    engine.add_request("a", "x", params(n=2, best_of=4))
    (output,) = engine.run()
    assert [choice.token_ids[0] for choice in output.outputs] == [203, 202]
    assert [choice.index for choice in output.outputs] == [0, 1]
    assert output.outputs[0].logprobs is None
    assert output.outputs[0].cumulative_logprob is None


def test_logprobs_hold_the_token_first_and_their_text(engine: Engine) -> None:
    engine.add_request("a", "x", params("DELTA", logprobs=3, max_tokens=4))
    outputs = engine.run()
    entries = [entry for output in outputs for entry in output.outputs[0].logprobs or ()]
    assert [next(iter(entry)) for entry in entries] == [100, 101, 102, 103]
    assert [len(entry) for entry in entries] == [3] * 4
    first = entries[0][100]
    assert (first.logprob, first.rank) == (-1.0, 2)
    assert first.decoded_token == engine.get_tokenizer().decode([100])
    assert outputs[-1].outputs[0].cumulative_logprob == -4.0


def test_without_detokenizing_logprobs_have_no_text_either(engine: Engine) -> None:
    engine.add_request("a", [7, 8], params(logprobs=1, prompt_logprobs=1, detokenize=False))
    engine.add_request("b", [7, 8], params(logprobs=1, prompt_logprobs=1))
    last = {output.request_id: output for output in engine.run()}
    for request_id, has_text in (("a", False), ("b", True)):
        output = last[request_id]
        entries = [*(output.prompt_logprobs or ()), *(output.outputs[0].logprobs or ())]
        texts = [logprob.decoded_token for entry in entries for logprob in (entry or {}).values()]
        assert texts
        assert {text is not None for text in texts} == {has_text}


@pytest.mark.parametrize("kind", ["CUMULATIVE", "DELTA", "FINAL_ONLY"])
def test_prompt_logprobs_have_an_entry_per_prompt_token(engine: Engine, kind: str) -> None:
    engine.add_request("a", [7, 8, 9], params(kind, prompt_logprobs=0, max_tokens=3))
    outputs = engine.run()
    with_logprobs = [output for output in outputs if output.prompt_logprobs is not None]
    assert len(with_logprobs) == (1 if kind == "DELTA" else len(outputs))
    entries = with_logprobs[0].prompt_logprobs
    assert entries is not None
    assert entries[0] is None
    assert [next(iter(entry)) for entry in entries[1:] if entry] == [8, 9]


def test_a_stream_interval_gathers_tokens_after_the_first(config: VllmConfig) -> None:
    scheduler = dataclasses.replace(config.scheduler, stream_interval=4)
    engine = make_engine(dataclasses.replace(config, scheduler=scheduler))
    engine.add_request("a", "x", params("DELTA", max_tokens=11))
    assert [len(output.outputs[0].token_ids) for output in engine.run()] == [1, 4, 4, 2]


def test_an_id_in_use_is_refused_and_free_again_afterwards(engine: Engine) -> None:
    engine.add_request("a", "x", params())
    with pytest.raises(BadRequest, match="in use"):
        engine.add_request("a", "y", params())
    engine.run()
    engine.add_request("a", "x", params())
    assert engine.run()[-1].finished


def test_late_updates_of_an_aborted_request_do_not_reach_its_successor(engine: Engine) -> None:
    engine.add_request("a", "x", params(max_tokens=50))
    engine.step()
    engine.abort_request("a")
    engine.add_request("a", "x", params(max_tokens=2))
    outputs = engine.run()
    assert outputs[-1].outputs[0].finish_reason == "length"
    assert outputs[-1].outputs[0].token_ids == [100, 101]


def test_an_aborted_request_leaves_nothing(engine: Engine) -> None:
    engine.add_request("a", "x", params(n=2))
    engine.step()
    engine.abort_request(["a", "unknown"])
    engine.settle()
    assert not engine.has_unfinished_requests()
    assert not engine.core.requests
    assert engine.step() == []


class Recorder:
    def __init__(self) -> None:
        self.iterations: list[IterationStats] = []

    def record(self, engine: EngineStats, iteration: IterationStats, core: int = 0) -> None:
        self.iterations.append(iteration)


def test_statistics_count_every_token_and_request(engine: Engine) -> None:
    recorder = Recorder()
    engine.add_stat_logger(recorder)
    engine.add_request("a", [7, 8, 9], params(max_tokens=5))
    engine.add_request("b", [7, 8], params(max_tokens=3))
    engine.run()
    assert sum(i.num_generation_tokens for i in recorder.iterations) == 8
    assert sum(i.num_prompt_tokens for i in recorder.iterations) == 5
    assert sum(len(i.time_to_first_token_s) for i in recorder.iterations) == 2
    assert sum(len(i.inter_token_s) for i in recorder.iterations) == 6
    finished = [f for i in recorder.iterations for f in i.finished]
    assert [(f.reason, f.num_generation_tokens) for f in finished] == [
        (FinishReason.LENGTH, 3),
        (FinishReason.LENGTH, 5),
    ]
    assert all(0 <= f.prefill_s <= f.e2e_s for f in finished)


def test_aborted_requests_are_counted(engine: Engine) -> None:
    recorder = Recorder()
    engine.add_stat_logger(recorder)
    for request_id in ("a", "b"):
        engine.add_request(request_id, [7, 8, 9], params(max_tokens=5))
    engine.step()
    engine.abort_request("a")
    engine.run()
    finished = [f.reason for i in recorder.iterations for f in i.finished]
    assert finished == [FinishReason.ABORT, FinishReason.LENGTH]


def test_times_of_a_request_are_in_order(engine: Engine) -> None:
    engine.add_request("a", "x", params("FINAL_ONLY", max_tokens=5))
    metrics = engine.run()[0].metrics
    assert metrics is not None
    times = [
        metrics.arrival_time,
        metrics.first_token_time,
        metrics.last_token_time,
        metrics.finished_time,
    ]
    assert times == sorted(time for time in times if time is not None)


def test_a_failing_core_is_reported_and_stays_dead(engine: Engine) -> None:
    engine.add_request("a", "x", params())
    engine.core.script = lambda request: []
    engine.add_request("b", "x", params())
    with pytest.raises(EngineDeadError, match="IndexError"):
        engine.run()
    assert not engine.has_unfinished_requests()
    engine.add_request("c", "x", params())
    with pytest.raises(EngineDeadError):
        engine.step()


def test_calls_are_answered_between_steps(engine: Engine) -> None:
    engine.add_request("a", "x", params())
    assert engine.call("num_requests") == [1]
    assert engine.reset_prefix_cache() is False
    assert engine.run()[-1].finished
    assert engine.reset_prefix_cache() is True
    with pytest.raises(NotAvailable, match="no wash"):
        engine.call("wash")


def test_without_a_tokenizer_outputs_are_tokens(config_without_tokenizer: VllmConfig) -> None:
    engine = make_engine(config_without_tokenizer)
    engine.add_request("a", [5, 6], params("FINAL_ONLY", max_tokens=3, logprobs=1))
    choice = engine.run()[0].outputs[0]
    assert (choice.text, choice.token_ids) == ("", [100, 101, 102])
    assert choice.logprobs is not None
    assert choice.logprobs[0][100].decoded_token is None


def test_statistics_are_logged_at_intervals_unless_disabled(
    config: VllmConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    for disabled, expected in ((False, True), (True, False)):
        observability = dataclasses.replace(
            config.observability, disable_log_stats=disabled, log_stats_interval_s=0.0
        )
        engine = make_engine(dataclasses.replace(config, observability=observability))
        engine.front.log_statistics()
        engine.add_request("a", "x", params(max_tokens=5))
        caplog.clear()
        with caplog.at_level(logging.INFO, "vllm"):
            engine.run()
        assert ("generation" in caplog.text) is expected


def test_the_interval_log_names_the_engine_where_there_are_several(log_lines: LogLines) -> None:
    for num_engines in (1, 2):
        log = IntervalLog(0.0, num_engines)
        log.record(EngineStats(num_running=1), IterationStats(), num_engines - 1)
    starts = [line.partition(" prompt")[0] for line in log_lines.text.splitlines()]
    assert starts == ["Engine:", "Engine 001:"]
