"""PT_COMPILE_ONLY_MODE. Run in a lazy process with it."""

from __future__ import annotations

import habana_frameworks.torch.core as htcore
import torch
from hpu_emulator import _C, recipes

HPU = torch.device("hpu")


def test_recipes_are_compiled_and_not_launched():
    x = torch.ones(3, 4).to(HPU)
    launched, compiled = recipes.launches(), recipes.count()
    for _ in range(2):
        y = (x @ x.t()).softmax(-1)
        htcore.mark_step()
        del y
    assert recipes.count() == compiled + 1
    assert recipes.launches() == launched


def test_results_are_garbage_of_the_right_shape():
    x = torch.ones(3, 4).to(HPU)
    y = x * 2
    assert y.shape == (3, 4)
    assert torch.isnan(y.cpu()).all()
    values, indices = x.topk(2)
    assert (values.shape, indices.dtype) == ((3, 2), torch.int64)
    assert (indices.cpu() != indices.cpu().clamp(0, 3)).all() or (indices.cpu() == 0x5A).all()
    assert torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]).shape == (
        1, 3, 4,
    )  # fmt: skip


def test_what_is_written_in_place_stays_as_it_is():
    cache = torch.zeros(4, 2).to(HPU)
    cache.index_copy_(0, torch.tensor([1]).to(HPU), torch.ones(1, 2).to(HPU))
    cache[2] = 5
    assert cache.cpu().tolist() == [[0, 0]] * 4


def test_the_mode_ends_when_it_is_switched_off():
    x = torch.ones(3).to(HPU)
    _C.set_compile_only(False)
    try:
        assert (x + 1).tolist() == [2, 2, 2]
    finally:
        _C.set_compile_only(True)
