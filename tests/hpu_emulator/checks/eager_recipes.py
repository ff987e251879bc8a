"""What makes a recipe of eager mode and of compiled regions. Run with PT_HPU_LAZY_MODE=0."""
# ruff: noqa: PLW0108 - every step is a function of its own, so that all of it is inside

from __future__ import annotations

import habana_frameworks.torch.core as htcore
import pytest
import torch
from hpu_emulator import _C, recipes

HPU = torch.device("hpu")
X = torch.randn(4, 6).to(HPU)


def compiled(step) -> int:
    before = recipes.count()
    step()
    return recipes.count() - before


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (lambda: X.exp(), lambda: X[:2].exp(), True),
        (lambda: X.exp(), lambda: torch.ones(3, 2, device=HPU).exp(), True),
        (lambda: X.exp(), lambda: X.bfloat16().exp_(), False),
        (lambda: X.exp(), lambda: X[0].exp(), False),
        (lambda: X.softmax(1), lambda: X.softmax(0), False),
        (lambda: X * 2.0, lambda: X * 3.0, True),
        (lambda: X.sum(0), lambda: X.sum(0, keepdim=True), False),
    ],
)
def test_an_op_is_known_by_dtypes_ranks_and_attributes(first, second, same):
    torch.ones(3, 2, device=HPU)
    X.bfloat16()
    first()
    assert (compiled(second) == 0) is same


def test_a_step_does_nothing_but_warn_once(caplog):
    htcore.mark_step()
    htcore.mark_step()
    assert [r.message for r in caplog.records].count(
        "mark_step is lazy mode only functionality: nothing is done"
    ) <= 1


def test_integers_keep_64_bits():
    assert torch.tensor([2**40 + 5]).to(HPU).item() == 2**40 + 5


def test_a_compiled_region_is_one_recipe_by_its_key():
    def region(key: str) -> None:
        _C.begin_region()
        X.exp().relu().sum()
        _C.end_region(key, 3)

    assert compiled(lambda: region("a [4, 6]")) == 1
    assert compiled(lambda: region("a [4, 6]")) == 0
    assert compiled(lambda: region("a [5, 6]")) == 1
    assert recipes.compilations()[-1].mode == "compile"
    _C.begin_region()
    with pytest.raises(RuntimeError, match="inside another"):
        _C.begin_region()
    _C.abandon_region()
    assert compiled(lambda: X.tanh()) == 1
