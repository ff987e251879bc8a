"""What /openapi.json says of answers that are not one JSON object and nothing else."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response

from vllm.entrypoints.openai.errors import DOCUMENTED_ERRORS
from vllm.metrics.prometheus import CONTENT_TYPE

Documented = dict[int | str, dict[str, Any]]

# Of routes that stream where the request says so.
JSON_OR_EVENTS: Final[Documented] = {
    200: {
        "description": "One object, or with `stream` server-sent events.",
        "content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}},
    }
}
HEALTH: Final[Documented] = {
    200: {"description": "Requests are served. No body."},
    503: {
        "description": "The engine is gone or hangs, or the server is about to end.",
        "content": DOCUMENTED_ERRORS["5XX"]["content"],
    },
}
# Of routes for what this server never does.
NEVER: Final[Documented] = {400: {"description": "Not available; says what to do instead."}}


class Exposition(Response):
    media_type = CONTENT_TYPE
