"""What makes a recipe of lazy mode. Run in a process with PT_HPU_LAZY_MODE=1."""
# ruff: noqa: PLW0108 - every step is a function of its own, so that all of it is inside

from __future__ import annotations

from collections.abc import Callable

import habana_frameworks.torch.core as htcore
import pytest
import torch
from hpu_emulator import _C, recipes, strict
from hpu_emulator.errors import RecompilationError
from torch import Tensor, nn

HPU = torch.device("hpu")


def compiled(step: Callable[[], object]) -> int:
    """Recipes that one step compiles; what it returns lives until the step ends."""
    htcore.mark_step()
    before = recipes.count()
    kept = step()
    htcore.mark_step()
    del kept
    return recipes.count() - before


def is_same_recipe(first: Callable[[], object], second: Callable[[], object]) -> bool:
    compiled(first)
    return compiled(second) == 0


X, Y = torch.randn(4, 6).to(HPU), torch.randn(4, 6).to(HPU)
LONG = torch.randn(5, 6).to(HPU)
HALF = X.bfloat16()
SQUARE = torch.randn(6, 6).to(HPU)
htcore.mark_step()


def chain(x: Tensor, factor: float = 2.0, dim: int = -1) -> Tensor:
    return (x * factor).softmax(dim)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (lambda: chain(X), lambda: chain(X), True),
        (lambda: chain(X), lambda: chain(Y), True),
        (lambda: chain(X), lambda: chain(LONG), False),
        (lambda: chain(X), lambda: chain(HALF), False),
        (lambda: chain(X, 2.0), lambda: chain(X, 3.5), True),
        (lambda: X + 1, lambda: X + 7, True),
        (lambda: X.add(Y, alpha=1), lambda: X.add(Y, alpha=2), True),
        (lambda: X + 1, lambda: X + 1.5, False),
        (lambda: X.clamp(min=0), lambda: X.clamp(min=5), True),
        (lambda: chain(X, dim=-1), lambda: chain(X, dim=0), False),
        (lambda: SQUARE.sum(0), lambda: SQUARE.sum(1), False),
        (lambda: X.topk(2), lambda: X.topk(3), False),
        (lambda: X.sort(descending=True), lambda: X.sort(descending=False), False),
        (lambda: X.relu().exp(), lambda: X.exp().relu(), False),
        (lambda: X + Y, lambda: X + X, False),
        (lambda: SQUARE.exp(), lambda: SQUARE.t().exp(), False),
        (lambda: X[0:2].exp(), lambda: X[0:2].exp(), True),
        (lambda: X[0:2].exp(), lambda: X[1:3].exp(), False),
        (lambda: X[0:2].exp(), lambda: LONG[0:2].exp(), False),
        (lambda: X[0:2].contiguous().exp(), lambda: X.narrow(0, 0, 2).contiguous().exp(), True),
    ],
)
def test_a_recipe_is_known_by_what_the_compiler_would_see(first, second, same):
    assert is_same_recipe(first, second) is same


def test_what_is_alive_at_the_step_is_part_of_the_recipe():
    def all_kept():
        a = X.erf()
        return a, a.cos()

    def only_the_last():
        return X.erf().cos()

    assert not is_same_recipe(all_kept, only_the_last)
    assert is_same_recipe(only_the_last, only_the_last)


def test_when_an_input_was_uploaded_makes_no_difference():
    def uploaded_in_the_same_step():
        x = torch.ones(2, 9).to(HPU)
        return x, x.exp()

    x = torch.ones(2, 9).to(HPU)
    assert is_same_recipe(uploaded_in_the_same_step, lambda: x.exp())
    assert is_same_recipe(uploaded_in_the_same_step, lambda: torch.ones(2, 9).to(HPU).exp())


def test_equal_layers_between_steps_share_one_recipe():
    layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4)).to(HPU)

    def run(steps_inside: bool) -> int:
        htcore.mark_step()
        before = recipes.count()
        x = X
        with torch.inference_mode():
            for layer in layers:
                x = layer(x).relu()
                if steps_inside:
                    htcore.mark_step()
        htcore.mark_step()
        return recipes.count() - before

    # The first input outlives its step, the others do not: that alone makes no difference.
    assert run(steps_inside=True) == 1
    assert run(steps_inside=True) == 0
    assert run(steps_inside=False) == 1


def test_a_copy_from_the_host_is_no_recipe_but_one_into_a_view_is():
    host = torch.ones(4, 6)
    assert compiled(lambda: host.to(HPU)) == 0
    assert compiled(lambda: X.copy_(host)) == 0
    assert compiled(lambda: X[1].copy_(host[1])) == 1
    assert compiled(lambda: X[1].copy_(host[1])) == 0
    assert compiled(lambda: X[2].copy_(host[2])) == 1


def test_a_view_read_by_the_host_is_gathered_by_a_recipe_of_its_own():
    assert compiled(lambda: LONG.cpu()) == 0
    assert compiled(lambda: LONG[:3].cpu()) == 1
    assert compiled(lambda: LONG[:3].cpu()) == 0
    assert compiled(lambda: LONG[:4].cpu()) == 1


@pytest.mark.parametrize(
    "read", [lambda x: x.cpu(), lambda x: x.sum().item(), lambda x: torch.hpu.synchronize()]
)
def test_whatever_the_host_waits_for_ends_the_graph(read):
    htcore.mark_step()
    x = X.exp()
    assert _C.num_pending_ops() == 1
    read(x)
    assert _C.num_pending_ops() == 0


def test_a_graph_ends_at_the_limit_of_its_ops():
    htcore.mark_step()
    _C.set_max_ops(3)
    try:
        x = X
        for _ in range(7):
            x = x.relu()
        assert _C.num_pending_ops() == 1
    finally:
        _C.set_max_ops(2**63 - 1)


def test_the_values_of_constants_are_part_of_the_recipe():
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))
            self.register_buffer("scale_w", torch.tensor([scale]))

    modules = [Scaled(scale).to(HPU) for scale in (0.5, 0.5, 0.25)]

    def use(module: Scaled) -> Tensor:
        with torch.inference_mode():
            return X * module.weight * module.scale_w

    htcore.mark_step()
    compiled(lambda: use(modules[0]))
    assert compiled(lambda: use(modules[2])) == 0
    for module in modules:
        htcore.hpu_initialize(module, mark_only_scales_as_const=True)
    assert [compiled(lambda m=module: use(m)) for module in modules] == [1, 0, 1]
    htcore.hpu_reset_env()
    assert compiled(lambda: use(modules[2])) == 0


def test_a_forbidden_compilation_is_refused_every_time_and_says_what_differs():
    recipes.forget()
    compiled(lambda: chain(X))
    other = torch.randn(7, 6).to(HPU)
    htcore.mark_step()
    for _ in range(2):
        with strict.no_compilation(), pytest.raises(RecompilationError) as raised:
            kept = chain(other)
            htcore.mark_step()
            del kept
        assert "-aten::mul.out(%0 Float[4, 6]" in str(raised.value)
        assert "+aten::mul.out(%0 Float[7, 6]" in str(raised.value)
        assert __file__ in str(raised.value)
    with strict.no_compilation():
        assert compiled(lambda: chain(X)) == 0


def test_a_compilation_names_its_ops_and_the_place_that_caused_it():
    other = torch.randn(9, 6).to(HPU)
    recipes.reset()
    assert compiled(lambda: chain(other)) == 1
    (made,) = recipes.compilations()
    assert (made.mode, made.num_ops, made.name()) == ("lazy", 2, "mul.out _softmax.out")
    assert made.stack[0].function == "mark_step" or made.stack[0].file == __file__
    assert "Float[9, 6]" in made.lines()[0]


def test_launches_are_counted_for_known_recipes_too():
    compiled(lambda: chain(X))
    before = recipes.launches()
    for _ in range(3):
        compiled(lambda: chain(X))
    assert recipes.launches() == before + 3


def test_what_dies_inside_a_graph_is_workspace_that_stays_reserved():
    torch.hpu.synchronize()
    before = torch.hpu.memory_allocated()
    x = torch.ones(1 << 20, device=HPU)
    htcore.mark_step()
    base = torch.hpu.memory_allocated()
    y = ((x + 1) * 2 + 3) * 4  # 4 MiB each
    htcore.mark_step()
    grown = torch.hpu.memory_allocated() - base
    assert grown >= 4 << 20
    del x, y
    htcore.mark_step()
    assert torch.hpu.memory_allocated() >= before
    assert recipes.compilations()[-1].workspace_bytes >= 4 << 20


def test_integers_are_stored_in_32_bits():
    assert torch.tensor([2**40 + 5, -1, 2**31]).to(HPU).tolist() == [5, -1, -(2**31)]
    x = torch.tensor([2**31 - 1]).to(HPU)
    assert (x + 1).item() == -(2**31)
    assert (x - 1).item() == 2**31 - 2
