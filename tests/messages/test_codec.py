from __future__ import annotations

import math
import threading
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest

from vllm.errors import NotAvailable
from vllm.messages.cache import FullAttention, KVCacheLayout, SlidingWindow, groups_by_needs
from vllm.messages.codec import decoder, encoder
from vllm.messages.step import Admission
from vllm.sampling_params import SamplingParams


class Typed(msgspec.Struct):
    array: np.ndarray
    optional: np.ndarray | None = None
    anything: Any = None


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.zeros((0, 4), np.float32),
        np.array([True, False]),
        np.array(3.5),
        np.arange(12, dtype=np.int64)[::2],
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays_survive_in_typed_optional_and_untyped_fields(array: np.ndarray) -> None:
    message = Typed(array, array, {"nested": [array]})
    back = decoder(Typed).decode(encoder().encode(message))
    for copy in (back.array, back.optional, back.anything["nested"][0]):
        assert copy.dtype == array.dtype and copy.shape == array.shape
        np.testing.assert_array_equal(copy, array)
        assert copy.flags.writeable and copy.flags.aligned


def test_numpy_scalars_become_python_numbers() -> None:
    assert decoder(Any).decode(
        encoder().encode([np.int32(3), np.float32(0.5), np.bool_(True)])
    ) == [
        3,
        0.5,
        True,
    ]


def test_a_layout_with_groups_of_several_kinds_survives() -> None:
    full = FullAttention(block_size=16, num_kv_heads=2, head_dim=8, value_dim=8, dtype_bytes=4)
    window = SlidingWindow(16, 2, 8, 8, 4, window_tokens=32)
    layout = KVCacheLayout(7, groups_by_needs({"a": full, "b": full, "c": window}))
    assert decoder(KVCacheLayout).decode(encoder().encode(layout)) == layout


def test_a_function_is_refused() -> None:
    with pytest.raises(NotAvailable, match="cannot be sent"):
        encoder().encode([lambda: None])


def test_a_function_travels_with_leave_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    sent = encoder().encode([math.sqrt, 4])
    function, value = decoder(Any).decode(sent)
    assert function(value) == 2
    with pytest.raises(NotAvailable, match="cannot be sent to another process"):
        encoder().encode([partial(print, threading.Lock())])
    monkeypatch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION")
    with pytest.raises(ValueError, match="VLLM_ALLOW_INSECURE_SERIALIZATION"):
        decoder(Any).decode(sent)


def test_sampling_parameters_survive_in_an_admission() -> None:
    params = SamplingParams(temperature=0.5, stop=["x"], logit_bias={3: 1.5}, prompt_logprobs=2)
    admission = Admission(1, "a", np.arange(4, dtype=np.int32), 4, params)
    back = decoder(Admission).decode(encoder().encode(admission))
    assert back.params == params
    np.testing.assert_array_equal(back.token_ids, admission.token_ids)


def test_another_type_than_an_array_is_refused_where_one_is_expected() -> None:
    with pytest.raises(msgspec.ValidationError, match="ndarray"):
        decoder(Typed).decode(encoder().encode({"array": [1, 2]}))
