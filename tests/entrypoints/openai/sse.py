"""Reads streams in tests."""

from __future__ import annotations

import json
from typing import Any

import httpx


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a whole stream, which must end with [DONE]."""
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines), text
    assert lines[-1] == "data: [DONE]", text
    return [json.loads(line[6:]) for line in lines[:-1]]


async def stream(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> list[dict[str, Any]]:
    response = await client.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return events_of(response.text)
