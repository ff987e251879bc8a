import pytest

from tests.entrypoints.openai.sse import stream

PATH = "/v1/completions"
pytestmark = pytest.mark.asyncio


async def post(client, **body):
    response = await client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_answer_has_text_reason_and_usage(client):
    answer = await post(client, model="fake", prompt="Once", max_tokens=3)
    assert answer["object"] == "text_completion"
    assert answer["model"] == "fake"
    assert answer["choices"][0]["text"] == "and"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["usage"]["total_tokens"] == 7


async def test_sixteen_tokens_are_the_default(client, engine):
    await post(client, prompt="Once")
    await post(client, prompt="Once", max_tokens=None)
    assert [params.max_tokens for _, params, _ in engine.seen] == [16, None]


async def test_streamed_text_is_the_text_of_the_whole_answer(client):
    whole = await post(client, prompt="Once", max_tokens=9)
    pieces = await stream(client, PATH, {"prompt": "Once", "max_tokens": 9})
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole["choices"][0]["text"]
    assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None] * 8 + ["length"]
    assert len({piece["id"] for piece in pieces}) == 1


async def test_choices_of_many_prompts_are_numbered_by_prompt_then_sequence(client):
    answer = await post(client, prompt=["One", "Two", "Three"], n=2, max_tokens=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3, 4, 5]
    assert answer["usage"]["prompt_tokens"] == 3 + 3 + 5
    assert answer["usage"]["completion_tokens"] == 6 * 2
    pieces = await stream(client, PATH, {"prompt": ["One", "Two"], "n": 2, "max_tokens": 2})
    texts = dict.fromkeys(range(4), "")
    for piece in pieces:
        texts[piece["choices"][0]["index"]] += piece["choices"][0]["text"]
    assert texts == dict.fromkeys(range(4), "an")


@pytest.mark.parametrize("prompt", [[72, 105], [[72, 105]]])
async def test_prompts_may_be_token_ids(client, engine, prompt):
    await post(client, prompt=prompt)
    assert engine.seen[0][0]["prompt_token_ids"] == [72, 105]


async def test_echo_repeats_the_prompt_once(client):
    assert (await post(client, prompt="Hi ", echo=True, max_tokens=3))["choices"][0]["text"] == (
        "Hi and"
    )
    pieces = await stream(client, PATH, {"prompt": "Hi ", "echo": True, "max_tokens": 3})
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == "Hi and"


async def test_echo_without_tokens_scores_the_prompt(client):
    answer = await post(client, prompt="Hi", echo=True, max_tokens=0, logprobs=1)
    choice = answer["choices"][0]
    assert choice["text"] == "Hi"
    assert choice["logprobs"]["tokens"] == ["H", "i"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5]
    assert choice["logprobs"]["top_logprobs"] == [None, {"i": -0.5}]
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


async def test_every_sequence_of_a_stream_echoes_the_prompt_with_its_logprobs(client):
    body = {"prompt": "Hi", "echo": True, "max_tokens": 1, "logprobs": 0, "n": 2}
    pieces = await stream(client, PATH, body)
    assert [piece["choices"][0]["text"] for piece in pieces] == ["Hia", "Hia"]
    for piece in pieces:
        assert piece["choices"][0]["logprobs"]["token_logprobs"] == [None, -0.5, -0.5]


async def test_logprobs_are_parallel_lists_with_offsets_into_the_text(client):
    answer = await post(client, prompt="Hi", max_tokens=2, logprobs=2)
    assert answer["choices"][0]["logprobs"] == {
        "text_offset": [0, 1],
        "token_logprobs": [-0.5, -0.5],
        "tokens": ["a", "n"],
        "top_logprobs": [{"a": -0.5, "b": -9999.0}, {"n": -0.5, "o": -9999.0}],
    }
    pieces = await stream(client, PATH, {"prompt": "Hi", "max_tokens": 2, "logprobs": 0})
    assert [piece["choices"][0]["logprobs"]["text_offset"] for piece in pieces] == [[0], [1]]
    assert pieces[0]["choices"][0]["logprobs"]["top_logprobs"] == [{"a": -0.5}]


async def test_tokens_can_be_written_as_ids(client, engine):
    answer = await post(
        client, prompt="Hi", max_tokens=1, logprobs=1, return_tokens_as_token_ids=True
    )
    token_id = engine.tokenizer.encode("a")[0]
    assert answer["choices"][0]["logprobs"]["tokens"] == [f"token_id:{token_id}"]


async def test_token_ids_are_returned_on_request(client, engine):
    answer = await post(client, prompt="Hi", max_tokens=2, return_token_ids=True)
    assert answer["choices"][0]["token_ids"] == engine.tokenizer.encode("an")
    assert answer["choices"][0]["prompt_token_ids"] == engine.tokenizer.encode("Hi")


async def test_prompt_logprobs_are_by_token_id(client, engine):
    answer = await post(client, prompt="Hi", max_tokens=1, prompt_logprobs=1)
    first, second = answer["choices"][0]["prompt_logprobs"]
    token_id = str(engine.tokenizer.encode("i")[0])
    assert first is None
    assert second[token_id] == {"logprob": -0.5, "rank": 1, "decoded_token": "i"}


async def test_usage_ends_a_stream_on_request(client):
    body = {"prompt": "Hi", "max_tokens": 2}
    assert all("usage" not in piece for piece in await stream(client, PATH, body))
    options = {"include_usage": True}
    pieces = await stream(client, PATH, {**body, "stream_options": options})
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"]["completion_tokens"] == 2
    options = {"include_usage": True, "continuous_usage_stats": True}
    pieces = await stream(client, PATH, {**body, "stream_options": options})
    assert [piece["usage"]["completion_tokens"] for piece in pieces] == [1, 2, 2]


async def test_what_has_no_value_is_null_and_not_absent(client):
    """Clients read these as attributes of what came."""
    answer = await post(client, prompt="Hi", max_tokens=2)
    nulls = "kv_transfer_params service_tier system_fingerprint"
    assert {name: answer[name] for name in nulls.split()} == dict.fromkeys(nulls.split())
    nulls = "logprobs stop_reason prompt_logprobs prompt_token_ids token_ids"
    (choice,) = answer["choices"]
    assert {name: choice[name] for name in nulls.split()} == dict.fromkeys(nulls.split())


async def test_every_chunk_tells_the_usage_of_its_sequence(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": ["Hi", "Ho!"], "n": 2, "max_tokens": 2, "stream_options": options}
    *pieces, last = await stream(client, PATH, body)
    for index in range(4):
        own = [piece["usage"] for piece in pieces if piece["choices"][0]["index"] == index]
        assert [usage["completion_tokens"] for usage in own] == [1, 2]
        assert {usage["prompt_tokens"] for usage in own} == {2 if index < 2 else 3}
        assert all(u["total_tokens"] == u["prompt_tokens"] + u["completion_tokens"] for u in own)
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (5, 8)


async def test_sampling_fields_reach_the_engine(client, engine):
    sent = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 11,
        "min_tokens": 1,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "include_stop_str_in_output": True,
        "truncate_prompt_tokens": 5,
    }
    await post(
        client,
        prompt="Hi",
        **sent,
        stop="x",
        stop_token_ids=[3],
        logit_bias={"5": 200},
        bad_words=["no"],
        allowed_token_ids=[1, 2],
        priority=4,
        cache_salt="s",
    )
    prompt, params, priority = engine.seen[0]
    assert {name: getattr(params, name) for name in sent} == sent
    assert (params.stop, params.stop_token_ids, params.bad_words) == (["x"], [3], ["no"])
    assert (params.logit_bias, params.allowed_token_ids) == ({5: 100.0}, [1, 2])
    assert (priority, prompt["cache_salt"]) == (4, "s")


async def test_response_id_carries_the_one_of_the_client(client):
    assert (await post(client, prompt="Hi", request_id="mine"))["id"] == "cmpl-mine"
    response = await client.post(PATH, json={"prompt": "Hi"}, headers={"X-Request-Id": "header"})
    assert response.json()["id"] == "cmpl-header"


async def test_a_stream_that_cannot_start_is_an_http_error(client, engine):
    engine.raises = ValueError("boom")
    response = await client.post(PATH, json={"prompt": "Hi", "stream": True})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "InternalServerError"


async def test_a_beam_search_answers_with_its_best_sequences(client, engine):
    answer = await post(
        client, prompt="Hi", use_beam_search=True, n=1, best_of=2, max_tokens=3, logprobs=1
    )
    (choice,) = answer["choices"]
    assert choice["text"] == "aaa"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"] == [-0.5] * 3
    assert answer["usage"]["completion_tokens"] == 3
    assert [params.max_tokens for _, params, _ in engine.seen] == [1] * len(engine.seen)
    prompts = [prompt["prompt_token_ids"] for prompt, _, _ in engine.seen]
    assert prompts[0] == engine.tokenizer.encode("Hi")
    assert engine.tokenizer.encode("Hiaa") in prompts


async def test_beams_go_by_nothing_that_only_sampling_does(client, engine):
    for neutral in ({"top_p": 1.0, "top_k": -1, "stop": [], "seed": 3}, {"length_penalty": 1.0}):
        await post(client, prompt="Hi", use_beam_search=True, max_tokens=1, **neutral)


async def test_prompt_logprobs_come_with_the_first_chunk_of_each_sequence(client):
    body = {"prompt": "Hi", "max_tokens": 2, "n": 2, "prompt_logprobs": 0}
    whole = await post(client, **body)
    pieces = await stream(client, PATH, body)
    firsts = {}
    for piece in pieces:
        choice = piece["choices"][0]
        if choice["prompt_logprobs"] is not None:
            assert choice["index"] not in firsts
            firsts[choice["index"]] = choice["prompt_logprobs"]
    assert firsts == {0: whole["choices"][0]["prompt_logprobs"], 1: firsts[0]}


@pytest.mark.parametrize(
    "body", [{"echo": True, "logprobs": 0}, {"prompt_logprobs": 0, "return_token_ids": True}]
)
async def test_tokens_wait_for_the_prompts_logprobs(client, engine, body):
    """Another sequence may draw before the first has computed them."""
    engine.late_prompt_logprobs = True
    pieces = await stream(client, PATH, {"prompt": "Hi", "max_tokens": 3, **body})
    assert len(pieces) == 2
    first = pieces[0]["choices"][0]
    assert first["text"] == ("Hian" if "echo" in body else "an")
    if "echo" in body:
        assert first["logprobs"]["token_logprobs"] == [None, -0.5, -0.5, -0.5]
    else:
        assert first["prompt_logprobs"][0] is None
        assert len(first["token_ids"]) == 2


async def test_all_alternatives_are_minus_one(client):
    answer = await post(client, prompt="Hi", max_tokens=1, logprobs=-1)
    assert len(answer["choices"][0]["logprobs"]["top_logprobs"][0]) == 2
