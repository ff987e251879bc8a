"""Whatever is sent: an answer of the API's shape, soon, and no harm to anybody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from tests.entrypoints.openai.real_server import RealServer
from tests.fuzz import hostile
from tests.fuzz.conftest import greedy_text
from tests.fuzz.hostile import Case
from tests.limits import HANG_S

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("unharmed")]
NUM_CLIENTS = 3
# No answer may cost the server more: what NUM_CLIENTS and a neighbour cost meanwhile is in it.
LIMIT_CPU_S = 20.0
DELIBERATE = (501, 503)


def fields_of(schema: dict[str, Any], path: str) -> list[str]:
    body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    if "$ref" not in body:
        return ["prompt", "messages", "max_tokens", "model"]
    return list(schema["components"]["schemas"][body["$ref"].split("/")[-1]]["properties"])


async def attack(server: RealServer, cases: Iterable[Case]) -> None:
    """Several at once, while another user gets what is theirs."""
    todo = list(cases)[::-1]
    assert len({case.name for case in todo}) == len(todo)
    problems: list[str] = []

    async def send() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=HANG_S) as client:
            while todo:
                case = todo.pop()
                before_s = server.cpu_s()
                if problem := await problem_of(client, case):
                    problems.append(f"{case.name}: {problem}")
                if (cost_s := server.cpu_s() - before_s) > LIMIT_CPU_S:
                    problems.append(f"{case.name}: {cost_s} s of processor time")

    async def neighbour() -> set[str]:
        return {await asyncio.to_thread(greedy_text, server) for _ in range(3)}

    expected = greedy_text(server)
    texts, *_ = await asyncio.gather(neighbour(), *(send() for _ in range(NUM_CLIENTS)))
    assert problems == []
    assert texts == {expected}


async def problem_of(client: httpx.AsyncClient, case: Case) -> str:
    headers = [(name.encode(), value.encode()) for name, value in case.headers.items()]
    try:
        answer = await client.request(case.method, case.path, content=case.body, headers=headers)
    except httpx.LocalProtocolError:
        return ""  # the client itself would not send it
    except httpx.HTTPError as error:
        return repr(error)
    if answer.status_code >= 500 and answer.status_code not in DELIBERATE:
        return f"{answer.status_code} {answer.text[:200]}"
    if answer.status_code < 400 or case.method == "HEAD":
        return "" if '"error":{"message"' not in answer.text else answer.text[:200]
    try:
        error = json.loads(answer.text)["error"]
    except (ValueError, TypeError, KeyError):
        return f"not an error of the API: {answer.status_code} {answer.text[:200]}"
    return "" if isinstance(error["message"], str) and error["type"] else answer.text[:200]


@pytest.mark.parametrize("path", hostile.BODIES)
async def test_every_field_may_hold_anything(
    server: RealServer, schema: dict[str, Any], path: str
) -> None:
    await attack(server, hostile.wrong_fields(path, fields_of(schema, path)))


async def test_bodies_may_be_anything(server: RealServer) -> None:
    cases = [case for path in hostile.BODIES for case in hostile.not_json(path)]
    await attack(server, cases)


async def test_headers_may_be_anything(server: RealServer) -> None:
    await attack(server, hostile.headers())


async def test_anything_may_be_huge(server: RealServer) -> None:
    await attack(server, hostile.sizes())


async def test_forms_may_be_evil(server: RealServer) -> None:
    await attack(server, hostile.forms())


async def test_templates_of_requests_are_not_run(server: RealServer) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=HANG_S) as client:
        for case in hostile.templates():
            answer = await client.post(case.path, content=case.body, headers=case.headers)
            assert answer.status_code == 400, case.name
            assert "--trust-request-chat-template" in answer.json()["error"]["message"]
