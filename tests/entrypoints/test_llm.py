"""LLM on the shipped model, from prompts to outputs."""

from __future__ import annotations

import copy
import operator
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.limits import HANG_S
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.errors import BadRequest, ConfigError, EngineDeadError, NotAvailable
from vllm.inputs import TextPrompt, TokensPrompt
from vllm.metrics.reader import Counter
from vllm.sampling_params import BeamSearchParams

pytestmark = pytest.mark.engine

TINY_STORY = str(Path(__file__).parents[2] / "examples" / "models" / "tiny-story")
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    llm = LLM(TINY_STORY, max_num_seqs=16)
    yield llm
    llm.llm_engine.shutdown()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(llm: LLM) -> Iterator[None]:
    yield
    assert not llm.llm_engine.has_unfinished_requests()
    llm.llm_engine.call("check_integrity")


def generate(llm: LLM, prompts: Any, params: Any = GREEDY, **kwargs: Any) -> list[Any]:
    return llm.generate(prompts, params, use_tqdm=False, **kwargs)


def test_prompts_of_all_kinds_mix_and_keep_their_order(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("The fox")
    outputs = generate(
        llm,
        [
            "The fox",
            ids,
            TextPrompt(prompt="The fox"),
            TokensPrompt(prompt_token_ids=ids),
            "A boat",
        ],
    )
    texts = [output.outputs[0].text for output in outputs]
    assert len(set(texts[:4])) == 1
    assert texts[4] != texts[0]
    assert [output.prompt for output in outputs] == ["The fox", None, "The fox", None, "A boat"]
    assert all(output.prompt_token_ids == ids for output in outputs[:4])
    assert generate(llm, ids)[0].outputs[0].text == texts[0]
    assert generate(llm, []) == []


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [
        SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (1, 5, 9)
    ]
    outputs = generate(llm, ["One day"] * 3, params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 5, 9]
    with pytest.raises(BadRequest, match="2 entries for 3 prompts"):
        generate(llm, ["One day"] * 3, params[:2])


def test_more_prompts_than_slots_all_finish(llm: LLM) -> None:
    outputs = generate(llm, [f"Story {i}" for i in range(50)], priority=[0] * 50)
    assert all(output.finished for output in outputs)
    assert [output.prompt for output in outputs] == [f"Story {i}" for i in range(50)]


def test_text_is_what_the_tokens_decode_to(llm: LLM) -> None:
    for output in generate(llm, ["Once upon a time", "What is 3 + 4?"]):
        choice = output.outputs[0]
        assert choice.text == llm.get_tokenizer().decode(choice.token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_stop_string_cuts_text_at_any_depth(depth: int) -> None:
    llm = LLM(TINY_STORY, pipeline_depth=depth, max_num_seqs=4)
    whole = generate(llm, "Once upon a time", SamplingParams(temperature=0, max_tokens=60))[0]
    text = whole.outputs[0].text
    stop = text[20:24]
    cut = generate(llm, "Once upon a time", SamplingParams(temperature=0, max_tokens=60, stop=stop))
    choice = cut[0].outputs[0]
    assert choice.text == text[: text.index(stop)]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    llm.llm_engine.call("check_integrity")
    llm.llm_engine.shutdown()


def test_several_sequences_differ_and_a_seed_repeats_them(llm: LLM) -> None:
    params = SamplingParams(n=4, seed=7, max_tokens=20)
    first, second = (generate(llm, "One day", params)[0].outputs for _ in range(2))
    assert [choice.index for choice in first] == [0, 1, 2, 3]
    assert [choice.token_ids for choice in first] == [choice.token_ids for choice in second]
    assert len({tuple(choice.token_ids) for choice in first}) > 1
    alone = generate(llm, "One day", SamplingParams(seed=7, max_tokens=20))[0].outputs[0]
    assert alone.token_ids == first[0].token_ids


def test_best_of_keeps_the_most_likely(llm: LLM) -> None:
    common = {"seed": 3, "max_tokens": 12, "logprobs": 0}
    everything = generate(llm, "One day", SamplingParams(n=5, **common))[0].outputs
    best = generate(llm, "One day", SamplingParams(n=2, best_of=5, **common))[0].outputs
    expected = sorted((choice.cumulative_logprob for choice in everything), reverse=True)[:2]
    assert [choice.cumulative_logprob for choice in best] == expected


def test_logprobs_have_the_shapes_that_were_asked_for(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=3, prompt_logprobs=2)
    (output,) = generate(llm, "Once upon a time", params)
    choice = output.outputs[0]
    assert [len(entry) for entry in choice.logprobs] == [3] * len(choice.token_ids)
    assert all(t in entry for t, entry in zip(choice.token_ids, choice.logprobs, strict=True))
    total = sum(e[t].logprob for t, e in zip(choice.token_ids, choice.logprobs, strict=True))
    assert choice.cumulative_logprob == pytest.approx(total, abs=1e-4)
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for token_id, entry in zip(
        output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True
    ):
        assert token_id in entry
        assert len(entry) in (2, 3)


def test_a_bad_request_among_many_runs_none_of_them(llm: LLM) -> None:
    with pytest.raises(BadRequest, match="empty"):
        generate(llm, ["fine", [], "fine too"])
    assert not llm.llm_engine.has_unfinished_requests()
    assert generate(llm, "One day")[0].finished


def test_an_interrupt_aborts_and_leaves_the_engine_usable(llm: LLM) -> None:
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    long = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
    with pytest.raises(KeyboardInterrupt):
        generate(llm, ["One day"] * 64, long)
    timer.join()
    assert generate(llm, "One day")[0].finished


def test_chat_answers_one_conversation_or_many(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "What is 2 + 3?"}]
    (one,) = llm.chat(conversation, GREEDY, use_tqdm=False)
    two = llm.chat([conversation, conversation], GREEDY, use_tqdm=False)
    assert [output.outputs[0].text for output in two] == [one.outputs[0].text] * 2
    bos = llm.get_tokenizer().bos_token_id
    assert one.prompt_token_ids.count(bos) <= 1
    with pytest.raises(BadRequest, match="messages is empty"):
        llm.chat([[]], GREEDY)


def test_beam_search_finds_at_least_the_greedy_sequence(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=4, max_tokens=8, ignore_eos=True)
    (found,) = llm.beam_search(["Once upon a time"], params)
    scores = [sequence.cum_logprob for sequence in found.sequences]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    greedy = SamplingParams(temperature=0, max_tokens=8, logprobs=0, ignore_eos=True)
    (output,) = generate(llm, "Once upon a time", greedy)
    assert scores[0] >= output.outputs[0].cumulative_logprob - 1e-4
    assert all(len(s.tokens) == len(output.prompt_token_ids) + 8 for s in found.sequences)
    assert len({tuple(s.tokens) for s in found.sequences}) == 4


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"beam_width": 30, "max_tokens": 4}, "--max-logprobs"),
        ({"beam_width": 2, "max_tokens": 5000}, "--max-model-len"),
        ({"beam_width": 2, "max_tokens": 4, "temperature": 0.7}, "--logprobs-mode"),
    ],
)
def test_a_beam_search_that_cannot_work_says_why(
    llm: LLM, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        llm.beam_search(["Once"], BeamSearchParams(**params))


def test_the_model_can_be_looked_at(llm: LLM) -> None:
    (count,) = llm.apply_model(lambda model: sum(p.numel() for p in model.parameters()))
    assert count > 100_000
    assert llm.collective_rpc("ping") == llm.collective_rpc("ping")
    with pytest.raises(NotAvailable, match="no method"):
        llm.collective_rpc("load")
    assert llm.reset_prefix_cache() is True


def test_a_function_of_the_worker_is_called_in_process(llm: LLM) -> None:
    def asked(worker: Any, first: int, second: int = 0) -> tuple[int, int, bool]:
        return first, second, worker.get_model() is worker.model_runner.model

    assert llm.collective_rpc(asked, args=(3,), kwargs={"second": 4}) == [(3, 4, True)]
    with pytest.raises(NotAvailable, match="no keyword arguments"):
        llm.collective_rpc("ping", kwargs={"a": 1})
    with pytest.raises(NotAvailable, match="no timeout"):
        llm.collective_rpc(asked, timeout=HANG_S, args=(3,))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        llm.collective_rpc(lambda worker: 1 // 0)
    assert generate(llm, "One day")[0].finished


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("encode", ["x"]),
        ("embed", ["x"]),
        ("classify", ["x"]),
        ("score", ["x", "y"]),
        ("sleep", []),
        ("wake_up", []),
    ],
)
def test_what_does_not_exist_yet_refuses_clearly(llm: LLM, name: str, arguments: list[str]) -> None:
    with pytest.raises(NotAvailable, match="yet"):
        getattr(llm, name)(*arguments)


def test_a_model_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="no/such/model"):
        LLM("no/such/model")


def test_progress_reports_through_the_given_bar(llm: LLM) -> None:
    from tqdm import tqdm

    bars: list[tqdm[Any]] = []

    def make(**kwargs: Any) -> Any:
        bars.append(tqdm(**kwargs, disable=False))
        return bars[-1]

    llm.generate(["One day"] * 3, GREEDY, use_tqdm=make)
    assert (bars[0].n, bars[0].total) == (3, 3)
    assert "tok/s" in bars[0].postfix


def test_the_core_may_run_in_its_own_process(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # of the process that starts
    remote = LLM.from_engine_args(EngineArgs(TINY_STORY, max_num_seqs=16))
    try:
        prompts = ["Once upon a time", "The fox"]
        texts = [output.outputs[0].text for output in generate(remote, prompts)]
        assert texts == [output.outputs[0].text for output in generate(llm, prompts)]
        rank, model = operator.attrgetter("rank"), operator.attrgetter("model")
        assert remote.collective_rpc(rank) == [0]
        with pytest.raises(NotAvailable, match="what the call returned cannot be sent"):
            remote.collective_rpc(model)
        monkeypatch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION")
        for refused in (remote.apply_model, remote.collective_rpc):
            with pytest.raises(NotAvailable, match="VLLM_ALLOW_INSECURE_SERIALIZATION=1"):
                refused(rank)
        with pytest.raises(NotAvailable, match="logits_processors"):
            generate(remote, ["a", "b"], SamplingParams(logits_processors=[lambda ids, x: x]))
        assert not remote.llm_engine.has_unfinished_requests()
        os.kill(remote.llm_engine.client.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="SIGKILL"):
            generate(remote, prompts)
    finally:
        remote.llm_engine.shutdown()


def test_chat_takes_the_content_format_of_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is 1 + 1?"}]}]
    greedy = SamplingParams(temperature=0, max_tokens=8)
    auto, string = (
        llm.chat(messages, greedy, use_tqdm=False, chat_template_content_format=how)
        for how in ("auto", "string")
    )
    assert auto[0].prompt_token_ids == string[0].prompt_token_ids
    with pytest.raises(BadRequest, match="chat_template_content_format 'x'"):
        llm.chat(messages, greedy, use_tqdm=False, chat_template_content_format="x")


def test_token_ids_may_come_by_their_older_keyword(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=3)
    ids = llm.get_tokenizer().encode("Once upon a time")
    (new,) = llm.generate(ids, params, use_tqdm=False)
    for older in (ids, [ids]):
        (old,) = llm.generate(prompt_token_ids=older, sampling_params=params, use_tqdm=False)
        assert old.outputs[0].token_ids == new.outputs[0].token_ids
    with pytest.raises(BadRequest, match="either prompts or prompt_token_ids"):
        llm.generate("a", params, prompt_token_ids=ids)


def test_another_tokenizer_can_be_set(llm: LLM) -> None:
    own = llm.get_tokenizer()
    other = copy.deepcopy(own)
    llm.set_tokenizer(other)
    try:
        assert llm.get_tokenizer() is other
        (output,) = llm.generate("Once", SamplingParams(max_tokens=2), use_tqdm=False)
        assert output.outputs[0].text == other.decode(output.outputs[0].token_ids)
    finally:
        llm.set_tokenizer(own)


def test_metrics_are_kept_where_statistics_are(llm: LLM) -> None:
    with pytest.raises(NotAvailable, match="disable_log_stats=False"):
        llm.get_metrics()
    counting = LLM(TINY_STORY, disable_log_stats=False, kv_cache_memory_bytes=2**24)
    counting.generate("Once", SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
    values = {metric.name: metric for metric in counting.get_metrics()}
    assert values["vllm:generation_tokens"] == Counter(
        "vllm:generation_tokens", values["vllm:generation_tokens"].labels, 4
    )
