from __future__ import annotations

import json
from typing import Any

import pytest

from vllm.entrypoints.openai.batch.lines import URLS, BadLine, answer_line, bad_line, parse_line

GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}


def test_a_good_line_is_a_request() -> None:
    request = parse_line(json.dumps(GOOD).encode(), URLS)
    assert (request.custom_id, request.url, request.body) == (
        "a",
        "/v1/completions",
        {"prompt": "x"},
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"custom_id": None}, "missing_custom_id"),
        ({"custom_id": 5}, "missing_custom_id"),
        ({"custom_id": "a\ud83d"}, "invalid_custom_id"),
        ({"method": "GET"}, "invalid_method"),
        ({"url": "/v1/embeddings"}, "invalid_url"),
        ({"url": None}, "invalid_url"),
        ({"url": ["/v1/completions"]}, "invalid_url"),
        ({"body": "x"}, "invalid_request"),
        ({"body": {"stream": True}}, "invalid_request"),
        ({"body": {"background": True}}, "invalid_request"),
    ],
)
def test_what_is_wrong_with_a_line_has_a_code(change: dict[str, Any], code: str) -> None:
    with pytest.raises(BadLine) as failure:
        parse_line(json.dumps({**GOOD, **change}).encode(), URLS)
    assert failure.value.code == code
    told = json.loads(bad_line(failure.value).encode())
    assert told["response"] is None and told["error"]["code"] == code and told["error"]["message"]


@pytest.mark.parametrize(
    "data", [b"", b"x", b"[1]", b"3", b"[" * 100_000, b'{"custom_id": "\xff"}']
)
def test_what_is_no_object_is_an_error_of_its_line(data: bytes) -> None:
    with pytest.raises(BadLine) as failure:
        parse_line(data, URLS)
    assert failure.value.code == "invalid_json_line" and failure.value.custom_id is None


def test_an_error_of_the_server_is_told_with_its_body() -> None:
    request = parse_line(json.dumps(GOOD).encode(), URLS)
    body = {"error": {"message": "no", "type": "BadRequestError"}}
    told = json.loads(answer_line(request, 400, body))
    assert told["response"]["status_code"] == 400 and told["response"]["body"] == body
    assert told["error"] == {"code": "BadRequestError", "message": "no"}
    assert json.loads(answer_line(request, 502, "gone"))["error"]["message"] == "gone"


def test_an_answer_stays_on_one_line() -> None:
    request = parse_line(json.dumps(GOOD).encode(), URLS)
    line = answer_line(request, 200, {"text": "a\nb\u2028c"})
    assert line.count("\n") == 1 and json.loads(line)["response"]["body"]["text"] == "a\nb\u2028c"
