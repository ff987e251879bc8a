"""The whole path: `vllm serve` on the shipped model, through sockets and processes."""

import concurrent.futures
import json
import os
import signal
from pathlib import Path

import httpx
import openai
import pytest

from tests.entrypoints.openai.real_server import NAME, serving
from tests.entrypoints.openai.sse import events_of
from tests.limits import HANG_S, is_running, wait_until
from vllm.entrypoints.cli.main import main

pytestmark = pytest.mark.engine
HELLO = [{"role": "user", "content": "Tell me a short story."}]
GREEDY = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def http(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(http, path, **body):
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def stream(http, path, **body):
    response = http.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    return events_of(response.text)


def test_every_small_route_answers(http, server):
    assert http.get("/health").status_code == 200
    assert http.get("/ping").status_code == 200
    assert http.get("/version").json()["version"]
    assert [card["id"] for card in http.get("/v1/models").json()["data"]] == [NAME, "alias"]
    assert http.get("/load").json() == {"server_load": 0}
    tokens = post(http, "/tokenize", prompt="Once upon a time")["tokens"]
    text = post(http, "/detokenize", tokens=tokens)["prompt"]
    assert "Once upon a time" in text


def test_streamed_completion_is_the_whole_completion(http):
    whole = post(http, "/v1/completions", prompt="Once upon a time", **GREEDY)
    pieces = stream(
        http,
        "/v1/completions",
        prompt="Once upon a time",
        stream_options={"include_usage": True},
        **GREEDY,
    )
    text = "".join(choice["text"] for piece in pieces for choice in piece["choices"])
    assert text == whole["choices"][0]["text"]
    assert len(text) > 20
    streamed, usage = pieces[-1]["usage"], whole["usage"]
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert streamed[count] == usage[count]
    tokens = post(http, "/tokenize", prompt="Once upon a time")
    assert usage["prompt_tokens"] == tokens["count"]
    assert usage["completion_tokens"] <= 24


def test_streamed_chat_is_the_whole_chat(http):
    whole = post(http, "/v1/chat/completions", messages=HELLO, **GREEDY)
    pieces = stream(http, "/v1/chat/completions", messages=HELLO, **GREEDY)
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert text == whole["choices"][0]["message"]["content"]
    rendered = post(http, "/tokenize", messages=HELLO)
    assert whole["usage"]["prompt_tokens"] == rendered["count"]


def test_text_and_token_prompts_give_the_same(http):
    ids = post(http, "/tokenize", prompt="One day")["tokens"]
    both = post(http, "/v1/completions", prompt=["One day", "One day"], **GREEDY)
    one = post(http, "/v1/completions", prompt=ids, **GREEDY)
    texts = {choice["text"] for choice in (*both["choices"], *one["choices"])}
    assert len(texts) == 1
    assert [choice["index"] for choice in both["choices"]] == [0, 1]


def test_seeded_sampling_repeats_itself(http):
    sampled = {"prompt": "Once", "max_tokens": 16, "temperature": 1.0, "seed": 5, "n": 2}
    first, second = (post(http, "/v1/completions", **sampled) for _ in range(2))
    assert [c["text"] for c in first["choices"]] == [c["text"] for c in second["choices"]]


def test_best_of_returns_the_n_best(http):
    answer = post(
        http,
        "/v1/completions",
        prompt="Once",
        max_tokens=8,
        temperature=1.0,
        n=2,
        best_of=4,
        seed=1,
    )
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]


def test_stop_string_ends_the_text_before_itself(http):
    text = post(http, "/v1/completions", prompt="Once upon a time", **GREEDY)["choices"][0]["text"]
    word = text.split()[2]
    for pieces in (
        [post(http, "/v1/completions", prompt="Once upon a time", stop=word, **GREEDY)],
        stream(http, "/v1/completions", prompt="Once upon a time", stop=word, **GREEDY),
    ):
        stopped = "".join(piece["choices"][0]["text"] for piece in pieces)
        assert stopped == text[: text.index(word)]
        assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
        assert pieces[-1]["choices"][0]["stop_reason"] == word
    kept = post(
        http,
        "/v1/completions",
        prompt="Once upon a time",
        stop=word,
        include_stop_str_in_output=True,
        **GREEDY,
    )
    assert kept["choices"][0]["text"] == text[: text.index(word) + len(word)]


def test_logit_bias_decides_the_token(http):
    token = post(http, "/tokenize", prompt=" cat", add_special_tokens=False)["tokens"][0]
    answer = post(
        http,
        "/v1/completions",
        prompt="Once",
        temperature=0,
        max_tokens=3,
        logit_bias={str(token): 100},
        return_token_ids=True,
    )
    assert answer["choices"][0]["token_ids"] == [token] * 3


def test_completion_logprobs_cover_prompt_and_answer(http):
    body = {"prompt": "Once upon a", "echo": True, "logprobs": 2, "max_tokens": 4, "temperature": 0}
    whole = post(http, "/v1/completions", **body)["choices"][0]
    logprobs = whole["logprobs"]
    assert len({len(values) for values in logprobs.values()}) == 1
    assert logprobs["token_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    greedy = list(zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True))[-4:]
    assert all(value == max(top.values()) for value, top in greedy)
    pieces = stream(http, "/v1/completions", **body)
    tokens = [t for piece in pieces for t in piece["choices"][0]["logprobs"]["tokens"]]
    assert tokens == logprobs["tokens"]
    scored = post(http, "/v1/completions", **{**body, "max_tokens": 0})["choices"][0]
    count = len(scored["logprobs"]["tokens"])
    assert scored["logprobs"]["token_logprobs"] == pytest.approx(
        logprobs["token_logprobs"][:count], abs=1e-4
    )
    assert scored["text"] == "Once upon a"
    begin, *others = whole["logprobs"]["text_offset"]
    assert begin == 0, "what begins every text is no part of this one"
    assert others[0] == 0
    for at, token in zip(others, tokens[1:], strict=True):
        assert whole["text"].startswith(token, at)


def test_an_empty_text_is_what_the_tokenizer_makes_of_it(http):
    (begin,) = post(http, "/tokenize", prompt="")["tokens"]
    assert post(http, "/tokenize", prompt="", add_special_tokens=False)["tokens"] == []
    body = {"max_tokens": 4, "temperature": 0, "return_token_ids": True}
    prompts = (post(http, "/v1/completions", **body, prompt=p) for p in ("", [begin]))
    (choice,), (expected,) = (answer["choices"] for answer in prompts)
    assert choice["prompt_token_ids"] == [begin]
    assert choice["text"] == expected["text"]
    for empty in ({"prompt": "", "add_special_tokens": False}, {"prompt": []}, {"prompt": [[]]}):
        refused = http.post("/v1/completions", json=empty)
        assert refused.status_code == 400, empty
        assert "decoder prompt cannot be empty" in refused.json()["error"]["message"]


def test_the_prefix_cache_shows_in_the_usage(http):
    words = "the small red fox and the old brown bear went down to the river to look for fish " * 4
    body = {"prompt": words, "max_tokens": 1, "temperature": 0, "cache_salt": "mine"}
    cold, warm = (post(http, "/v1/completions", **body)["usage"] for _ in range(2))
    other = post(http, "/v1/completions", **{**body, "cache_salt": "yours"})["usage"]
    assert cold["prompt_tokens_details"]["cached_tokens"] == 0
    assert warm["prompt_tokens_details"]["cached_tokens"] > 0
    assert other["prompt_tokens_details"]["cached_tokens"] == 0


def test_the_openai_client_works(client):
    answer = client.chat.completions.create(
        model=NAME, messages=HELLO, max_completion_tokens=8, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].message.role == "assistant"
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens
    chunks = client.chat.completions.create(
        model=NAME,
        messages=HELLO,
        max_completion_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    *_, last = chunks
    assert last.usage.completion_tokens <= 8
    completion = client.completions.create(
        model=NAME, prompt=["Once", "One"], max_tokens=4, extra_body={"top_k": 5}
    )
    assert len(completion.choices) == 2
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-4", prompt="x")
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model=NAME, prompt="x", max_tokens=0)
    assert wrong.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "", "add_special_tokens": False}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "word " * 20_000}, "prompt"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": -5}, "max_tokens"),
        ({"prompt": "a", "logprobs": 10**6}, "logprobs"),
        ({"prompt": "a", "stop_token_ids": [10**9]}, "stop_token_ids"),
        ({"prompt": "a", "logit_bias": {"999999": 1}}, "logit_bias"),
        ({"prompt": "a", "allowed_token_ids": []}, "allowed_token_ids"),
        ({"prompt": "a", "allowed_token_ids": [1, 4], "min_tokens": 2}, "allowed_token_ids"),
        ({"prompt": "a", "priority": 1}, "priority"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_bad_input_is_400_and_the_engine_goes_on(http, fields, param, streamed):
    response = http.post("/v1/completions", json={**fields, "stream": streamed})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"]
    # The engine knows a prompt by either of its names.
    assert error["param"].startswith(param), error
    assert http.get("/health").status_code == 200


def test_a_client_that_hangs_up_frees_what_its_request_held(server, http):
    body = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True}
    for streamed in (True, False):
        for _ in range(3):
            hang_up(server, {**body, "stream": streamed})
    server.wait_for_metric("vllm:num_requests_running", 0)
    server.wait_for_metric("vllm:kv_cache_usage_perc", 0)
    assert http.get("/load").json() == {"server_load": 0}
    assert post(http, "/v1/completions", prompt="Once", **GREEDY)["choices"][0]["text"]


def hang_up(server, body):
    """Send a request and close the connection as soon as it runs."""
    with server.client() as client:
        try:
            request = client.build_request("POST", "/v1/completions", json=body)
            if body["stream"]:
                response = client.send(request, stream=True)
                next(response.iter_lines())
                response.close()
            else:
                client.send(request, stream=True).close()
        except httpx.ReadTimeout:
            pass


def test_many_clients_at_once_get_their_own_answers(http):
    def ask(i):
        prompt = f"Once upon a time there were {i}"
        return prompt, post(http, "/v1/completions", prompt=prompt, echo=True, **GREEDY)

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        for prompt, answer in pool.map(ask, range(48)):
            assert answer["choices"][0]["text"].startswith(prompt)


def test_metrics_count_what_was_served(server, http):
    before = {
        name: server.metric(name)
        for name in ("vllm:generation_tokens_total", "vllm:e2e_request_latency_seconds_count")
    }
    post(http, "/v1/completions", prompt="Once", max_tokens=7, ignore_eos=True)
    assert server.metric("vllm:generation_tokens_total") == (
        before["vllm:generation_tokens_total"] + 7
    )
    assert server.metric("vllm:e2e_request_latency_seconds_count") == (
        before["vllm:e2e_request_latency_seconds_count"] + 1
    )


def test_engine_death_ends_streams_with_an_error_and_then_the_server(tmp_path):
    with serving(log=tmp_path / "log.txt") as server, server.client() as http:
        body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(server.engine_pid(), signal.SIGKILL)
            events = [line for line in lines if line.startswith("data: ")]
        assert "error" in json.loads(events[-2][6:])
        assert server.process.wait(HANG_S) == 1
        assert "was killed by SIGKILL" in server.log.read_text()


def test_sigterm_stops_server_and_engine_while_a_stream_is_open(tmp_path):
    server_log = tmp_path / "log.txt"
    with serving("--shutdown-timeout", "1", log=server_log) as server, server.client() as http:
        body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
            children = server.children()
            assert server.stop() == 0
        assert children
        wait_until_gone(children)


def wait_until_gone(pids):
    wait_until(lambda: not any(map(is_running, pids)), f"the end of {[*map(command_of, pids)]}")


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return "ended"


def test_an_occupied_port_is_told_before_the_model_is_loaded(server, capsys):
    port = server.url.rsplit(":", 1)[1]
    assert main(["serve", "no-such-model", "--host", "127.0.0.1", "--port", port]) == 2
    assert f"--port {port}" in capsys.readouterr().err
