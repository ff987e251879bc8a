"""What only a real engine can show of completions and metrics."""

from __future__ import annotations

import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.entrypoints.openai.real_server import STORY
from tests.entrypoints.openai.sse import events_of
from tests.limits import wait_until
from vllm import LLM
from vllm.sampling_params import BeamSearchParams

pytestmark = pytest.mark.engine
PATH = "/v1/completions"


@pytest.fixture(scope="module")
def http(server):
    with server.client() as client:
        yield client


def post(http, path=PATH, **body):
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def totals(http) -> dict[str, float]:
    """Counters by name, those of finished requests by reason too."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            reason = sample.labels.get("finished_reason", "")
            if "le" not in sample.labels and sample.name.startswith("vllm:"):
                found[f"{sample.name}{reason and '.'}{reason}"] = sample.value
    return found


def growth(http, before: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in totals(http).items()}


def until(http, before: dict[str, float], name: str, value: float) -> dict[str, float]:
    wait_until(lambda: growth(http, before)[name] == value, f"{name} grown by {value}")
    return growth(http, before)


@pytest.mark.parametrize(
    ("extra", "params"),
    [
        ({"n": 3}, {"beam_width": 3}),
        ({"n": 2, "best_of": 4}, {"beam_width": 4}),
        ({"n": 2, "length_penalty": 0.0, "early_stopping": True},
         {"beam_width": 2, "length_penalty": 0.0, "early_stopping": True}),
    ],
)  # fmt: skip
def test_beams_over_http_are_those_of_the_library(http, beam_llm, extra, params):
    prompts = ["Once upon a time", "The cat"]
    answer = post(http, prompt=prompts, use_beam_search=True, max_tokens=10, **extra)
    texts = [choice["text"] for choice in answer["choices"]]
    expected = []
    for found in beam_llm.beam_search(prompts, BeamSearchParams(max_tokens=10, **params)):
        expected += [sequence.text for sequence in found.sequences[: extra["n"]]]
    assert len(texts) == 2 * extra["n"]
    for text, whole in zip(texts, expected, strict=True):
        assert whole.endswith(text), (text, whole)


@pytest.fixture(scope="module")
def beam_llm():
    return LLM(str(STORY), max_num_seqs=16, kv_cache_memory_bytes=2**26)


def test_a_chat_can_be_a_beam_search(http):
    answer = post(
        http,
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "Tell me a short story."}],
        use_beam_search=True,
        n=2,
        max_tokens=8,
        logprobs=True,
        top_logprobs=2,
    )
    first, second = answer["choices"]
    assert first["message"]["content"] != second["message"]["content"]
    assert len(first["logprobs"]["content"]) == 8
    assert len(first["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_the_best_of_several_has_the_highest_likelihood(http):
    body = {"prompt": "Once upon a time", "max_tokens": 6, "temperature": 1.5, "seed": 5}
    body |= {"logprobs": 0, "ignore_eos": True}
    every = post(http, **body, n=4)["choices"]
    best = post(http, **body, n=2, best_of=4)["choices"]
    by_likelihood = sorted(every, key=lambda c: -sum(c["logprobs"]["token_logprobs"]))
    assert [c["text"] for c in best] == [c["text"] for c in by_likelihood[:2]]
    assert [c["index"] for c in best] == [0, 1]


def test_an_echoed_truncated_prompt_is_what_the_model_read(http):
    body = {"prompt": "One day a cat sat down", "truncate_prompt_tokens": 2, "echo": True}
    answer = post(http, **body, max_tokens=0, logprobs=0)
    (choice,) = answer["choices"]
    assert choice["text"] == " sat down"
    assert "".join(choice["logprobs"]["tokens"]) == " sat down"
    assert answer["usage"]["prompt_tokens"] == 2


def test_streamed_prompt_logprobs_are_those_of_the_whole_answer(http):
    body = {"prompt": "Once upon a time", "max_tokens": 3, "prompt_logprobs": 1, "n": 2, "seed": 1}
    whole = post(http, **body, temperature=1)
    response = http.post(PATH, json={**body, "temperature": 1, "stream": True})
    firsts = {}
    for event in events_of(response.text):
        for choice in event["choices"]:
            if choice["prompt_logprobs"] is not None:
                firsts[choice["index"]] = choice["prompt_logprobs"]
    assert sorted(firsts) == [0, 1]
    for choice in whole["choices"]:
        got = firsts[choice["index"]]
        assert [set(entry or ()) for entry in got] == [
            set(entry or ()) for entry in choice["prompt_logprobs"]
        ]


def test_metrics_count_every_sequence_once_streamed_or_not(http):
    for stream in (False, True):
        before = totals(http)
        body = {"prompt": "Once upon a time", "n": 3, "max_tokens": 5, "ignore_eos": True}
        http.post(PATH, json={**body, "temperature": 1.0, "stream": stream})
        now = until(http, before, "vllm:request_success_total.length", 3)
        assert now["vllm:generation_tokens_total"] == 15
        assert now["vllm:request_generation_tokens_sum"] == 15
        assert now["vllm:time_to_first_token_seconds_count"] == 3
        assert now["vllm:inter_token_latency_seconds_count"] == 12
        assert now["vllm:e2e_request_latency_seconds_count"] == 3
        assert now["vllm:request_params_n_count"] == 1
        assert now["vllm:request_params_n_sum"] == 3
        assert now["vllm:request_max_num_generation_tokens_sum"] == 5
        assert now["vllm:request_params_max_tokens_sum"] == 15
        prompt_tokens = now["vllm:prompt_tokens_total"]
        assert prompt_tokens == now["vllm:request_prompt_tokens_sum"]
        assert prompt_tokens == now["vllm:prefix_cache_queries_total"]
        computed = now["vllm:iteration_tokens_total_sum"]
        assert computed == 15 + prompt_tokens - now["vllm:prefix_cache_hits_total"]


def test_an_abandoned_stream_is_counted_as_aborted_and_leaves_the_gauges_at_zero(http, server):
    before = totals(http)
    with httpx.Client(base_url=server.url) as other:
        body = {"prompt": "Once", "max_tokens": 900, "ignore_eos": True, "stream": True}
        with other.stream("POST", PATH, json=body) as response:
            next(response.iter_bytes())
    now = until(http, before, "vllm:request_success_total.abort", 1)
    assert now["vllm:request_success_total.length"] == 0
    wait_until(lambda: totals(http)["vllm:num_requests_running"] == 0, "an idle engine")
    assert totals(http)["vllm:kv_cache_usage_perc"] == 0


def test_the_cache_is_described_with_what_was_measured(http):
    line = re.search(r"^vllm:cache_config_info\{(.*)\} 1\.0$", http.get("/metrics").text, re.M)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line[1]))
    assert labels["block_size"] == "16"
    assert int(labels["num_gpu_blocks"]) > 16
    assert labels["enable_prefix_caching"] == "True"
