"""The copy of the model that an HTTP request asks for, by the header X-data-parallel-rank."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from starlette.requests import Request

from vllm.errors import BadRequest

HEADER: Final = "X-data-parallel-rank"
_current: ContextVar[int | None] = ContextVar("wanted_copy", default=None)


def wanted_copy() -> int | None:
    """The copy that the current request asks for; tasks that it starts see it too."""
    return _current.get()


def note_wanted_copy(request: Request) -> None:
    """Keep what a request asks for where `wanted_copy` finds it. Raises BadRequest."""
    text = request.headers.get(HEADER)
    if text is not None and not text.strip().isdecimal():
        raise BadRequest(f"{HEADER} {text!r}: must be the number of a copy of the model", HEADER)
    _current.set(None if text is None else int(text))
