"""Log-probabilities: from arrays of the engine core to what callers read."""

from __future__ import annotations

from collections.abc import Callable

from vllm.messages.step import LogprobArrays
from vllm.outputs import Logprob

TokenText = Callable[[int], str | None]


def logprob_dicts(arrays: LogprobArrays, token_text: TokenText) -> list[dict[int, Logprob]]:
    """One dict per position: the token itself first, then the alternatives, best first."""
    positions = []
    rows = zip(
        arrays.token_ids.tolist(), arrays.logprobs.tolist(), arrays.ranks.tolist(), strict=True
    )
    for token_ids, logprobs, rank in rows:
        own = token_ids[0]
        entry = {own: Logprob(logprobs[0], rank, token_text(own))}
        for i in range(1, len(token_ids)):
            if token_ids[i] != own:
                entry[token_ids[i]] = Logprob(logprobs[i], i, token_text(token_ids[i]))
        positions.append(entry)
    return positions
