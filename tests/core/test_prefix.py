"""The chain of hashes, as a scheduler makes it and as a front end does."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.core.kv_cache.prefix import extend_hashes, prompt_hashes
from vllm.core.request import Request
from vllm.messages.engine import EngineRequest
from vllm.sampling_params import SamplingParams

SALTS = (None, "", "a", "é")


def make_request(prompt: list[int], salt: str | None) -> Request:
    source = EngineRequest("a", prompt, SamplingParams(max_tokens=9), 0.0, cache_salt=salt)
    return Request(source, (0.0,), frozenset(), 1000, most_draws=1)


@given(
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40),
    st.integers(1, 9),
    st.sampled_from(SALTS),
    st.integers(0, 40),
)
def test_front_ends_and_schedulers_give_blocks_the_same_names(
    token_ids: list[int], block_size: int, salt: str | None, num_prompt: int
) -> None:
    num_prompt = max(1, min(num_prompt, len(token_ids)))
    request = make_request(token_ids[:num_prompt], salt)
    extend_hashes(request, block_size)
    for token_id in token_ids[num_prompt:]:
        request.tokens.append(token_id)
        extend_hashes(request, block_size)
    assert request.block_hashes == list(prompt_hashes(token_ids, block_size, salt))
    assert len(request.block_hashes) == len(token_ids) // block_size


def test_hashes_of_a_prompt_come_one_by_one() -> None:
    hashes = prompt_hashes(list(range(100)), 4, None)
    assert list(islice(hashes, 2)) == list(prompt_hashes(list(range(8)), 4, None))
    assert len(list(hashes)) == 23


@pytest.mark.parametrize("other", SALTS[1:])
def test_salts_share_nothing(other: str) -> None:
    plain = set(prompt_hashes(list(range(8)), 4, None))
    assert plain.isdisjoint(prompt_hashes(list(range(8)), 4, other))


def test_a_block_is_named_by_all_tokens_before_it() -> None:
    one, other = (list(prompt_hashes([start, 1, 2, 3], 2, None)) for start in (0, 9))
    assert one[0] != other[0] and one[1] != other[1]
