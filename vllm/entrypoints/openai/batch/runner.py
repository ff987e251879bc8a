"""Answers the lines of a batch through an application, several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
from fastapi import FastAPI

from vllm.entrypoints.openai.batch.lines import (
    URLS,
    BadLine,
    BatchRequest,
    answer_line,
    bad_line,
    parse_line,
)

NO_LIMIT = httpx.Timeout(None)
IS_JSON = {"content-type": "application/json"}


class BatchRunner:
    """Calls the application as its HTTP server would, so that a line means what a request means."""

    def __init__(self, app: FastAPI, max_concurrency: int) -> None:
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app, raise_app_exceptions=False),
            base_url="http://batch",
            timeout=NO_LIMIT,
        )
        self.max_concurrency = max_concurrency
        routes = app.openapi()["paths"]
        self.served = tuple(url for url in URLS if url in routes)
        self.num_failed = 0

    async def answers(self, lines: Sequence[bytes], first: int = 0) -> AsyncGenerator[str, None]:
        """A line of output per line of input, in their order, as soon as it is their turn.

        Those before `first` have been answered earlier.
        """
        slots = asyncio.Semaphore(self.max_concurrency)
        requests = self._parsed(lines)[first:]

        async def one(request: BatchRequest | BadLine) -> str:
            async with slots:
                return await self._answer(request)

        tasks = [asyncio.create_task(one(request)) for request in requests]
        try:
            for task in tasks:
                yield await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.client.aclose()

    def _parsed(self, lines: Sequence[bytes]) -> list[BatchRequest | BadLine]:
        parsed: list[BatchRequest | BadLine] = []
        seen: set[str] = set()
        for data in lines:
            try:
                request = parse_line(data, self.served)
                if request.custom_id in seen:
                    raise BadLine(
                        "duplicate_custom_id",
                        "an earlier line has this custom_id",
                        request.custom_id,
                    )
            except BadLine as error:
                parsed.append(error)
                continue
            seen.add(request.custom_id)
            parsed.append(request)
        return parsed

    async def _answer(self, request: BatchRequest | BadLine) -> str:
        try:
            if isinstance(request, BadLine):
                raise request
            content = request.encoded()
        except BadLine as error:
            self.num_failed += 1
            return bad_line(error)
        response = await self.client.post(request.url, content=content, headers=IS_JSON)
        self.num_failed += response.is_error
        return answer_line(request, response.status_code, _json(response))


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text
