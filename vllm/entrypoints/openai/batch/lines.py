"""Lines of batch files: what is asked, and what is answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.openai.protocol.common import random_id
from vllm.errors import BadRequest
from vllm.inputs.text import check_encodable

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


class BadLine(ValueError):
    """A line that cannot be answered: `code` for programs, the text for people."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.custom_id = custom_id


@dataclass(frozen=True, slots=True)
class BatchRequest:
    custom_id: str
    url: str
    body: dict[str, Any]

    def encoded(self) -> bytes:
        """As HTTP would bring it: what JSON cannot hold is left for the server to refuse.

        Raises BadLine.
        """
        try:
            return json.dumps(self.body).encode()
        except RecursionError:
            raise BadLine("invalid_request", "body is nested too deeply", self.custom_id) from None


def parse_line(data: bytes, served: tuple[str, ...]) -> BatchRequest:
    """Raises BadLine."""
    try:
        line = json.loads(data.decode())
    except UnicodeDecodeError as error:
        text = f"this line is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}"
        raise BadLine("invalid_json_line", text) from None
    except (ValueError, RecursionError) as error:
        raise BadLine("invalid_json_line", f"this line is not JSON: {error}") from None
    if not isinstance(line, dict):
        raise BadLine("invalid_json_line", "this line is no JSON object")
    custom_id = line.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise BadLine("missing_custom_id", "custom_id is missing: a text that names the request")
    try:
        check_encodable("custom_id", custom_id)
    except BadRequest as error:
        # It cannot be repeated in an answer, which is UTF-8.
        raise BadLine("invalid_custom_id", f"{error}: {custom_id!a}") from None

    def bad(code: str, message: str) -> BadLine:
        return BadLine(code, message, custom_id)

    if line.get("method", "POST") != "POST":
        raise bad("invalid_method", f"method {line['method']!r}: must be 'POST'")
    url, body = line.get("url"), line.get("body")
    if url not in served:
        raise bad("invalid_url", f"url {url!r}: must be one of {', '.join(served)}")
    if not isinstance(body, dict):
        raise bad("invalid_request", "body is missing: the JSON object that the url takes")
    for field in ("stream", "background"):
        if body.get(field):
            raise bad(
                "invalid_request", f"body.{field}: a batch waits for whole answers; leave it out"
            )
    return BatchRequest(custom_id, str(url), body)


def answer_line(request: BatchRequest, status: int, body: Any) -> str:
    """An answer of the server. One that is an error is told in `error`, too, as vLLM does."""
    error = None
    if status >= 400:
        detail = body.get("error") if isinstance(body, dict) else None
        detail = detail if isinstance(detail, dict) else {"message": str(body)}
        error = {"code": str(detail.get("type") or status), "message": detail.get("message")}
    response = {"status_code": status, "request_id": f"vllm-batch-{random_id()}", "body": body}
    return _line(request.custom_id, response, error)


def bad_line(error: BadLine) -> str:
    return _line(error.custom_id, None, {"code": error.code, "message": str(error)})


def has_failed(answer: bytes) -> bool | None:
    """Of a line of output; None if it is none."""
    try:
        fields = json.loads(answer)
        return fields["error"] is not None
    except (ValueError, KeyError, TypeError):
        return None


def _line(custom_id: str | None, response: Any, error: Any) -> str:
    fields = {"id": f"vllm-{random_id()}", "custom_id": custom_id}
    return json.dumps({**fields, "response": response, "error": error}, ensure_ascii=False) + "\n"
