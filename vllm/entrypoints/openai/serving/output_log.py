"""What --enable-log-outputs logs: a line per sequence, when it has ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from vllm.logger import init_logger
from vllm.outputs import RequestOutput

logger = init_logger(__name__)


async def logged(
    outputs: AsyncGenerator[tuple[int, RequestOutput], None],
    response_id: str,
    max_chars: int | None,
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """The same outputs, which hold what is new. Closing it closes them."""
    pieces: dict[tuple[int, int], list[str]] = {}
    async with aclosing(outputs):
        async for prompt_idx, output in outputs:
            for sequence in output.outputs:
                key = (prompt_idx, sequence.index)
                pieces.setdefault(key, []).append(sequence.text)
                if sequence.finish_reason is None:
                    continue
                logger.info(
                    "request %s: prompt %d, sequence %d ended with %s: %r",
                    response_id,
                    prompt_idx,
                    sequence.index,
                    sequence.finish_reason,
                    "".join(pieces.pop(key))[:max_chars],
                )
            yield prompt_idx, output
