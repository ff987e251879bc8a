"""Compiled regions: one recipe per graph and shapes. Eager mode."""

from __future__ import annotations

import pytest
import torch
from hpu_emulator import counters, recipes, strict
from hpu_emulator.errors import RecompilationError
from torch import nn

HPU = torch.device("hpu")
STATIC = {"force_static_compile": True}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    recipes.forget()
    with torch.no_grad():
        yield


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.cache = torch.zeros(32, 8)

    def forward(self, x, slots, blocks):
        y = self.linear(x)
        self.cache.index_copy_(0, slots, y)
        context = self.cache.index_select(0, blocks)
        attention = nn.functional.scaled_dot_product_attention
        return x + attention(y[None], context[None], context[None])[0]


class Decoder:
    """Three layers of a device, compiled one by one, and their twins on the host."""

    def __init__(self, **options) -> None:
        self.host = [Layer() for _ in range(3)]
        self.device = [Layer() for _ in range(3)]
        for ours, theirs in zip(self.device, self.host, strict=True):
            ours.load_state_dict(theirs.state_dict())
            ours.to(HPU).compile(backend="hpu_backend", **options)
            ours.cache = ours.cache.to(HPU)

    def step(self, rows: int) -> counters.Counters:
        """Runs both, compares them, and says what the device did."""
        arguments = torch.randint(0, 32, (rows,)), torch.randint(0, 32, (2 * rows,))
        hidden = torch.randn(rows, 8)
        ours, on_device = hidden.to(HPU), [t.to(HPU) for t in arguments]
        before = counters.snapshot()
        for layer in self.device:
            ours = layer(ours, *on_device)
        happened = counters.since(before)
        for layer in self.host:
            hidden = layer(hidden, *arguments)
        torch.testing.assert_close(ours.cpu(), hidden)
        torch.testing.assert_close(self.device[-1].cache.cpu(), self.host[-1].cache)
        return happened


def test_equal_layers_share_one_recipe_per_shape():
    decoder = Decoder(dynamic=False)
    compilations = [decoder.step(rows).compilations for rows in (2, 3, 2, 4, 3)]
    assert compilations == [1, 1, 0, 1, 0]
    assert decoder.step(4).launches == 3


def test_static_recipes_of_a_symbolic_graph_are_one_per_shape():
    decoder = Decoder(dynamic=True, options=STATIC)
    compilations = [decoder.step(rows).compilations for rows in (2, 3, 2, 4, 3)]
    assert compilations == [1, 1, 0, 1, 0]


def test_without_force_static_compile_a_symbolic_graph_is_one_recipe():
    decoder = Decoder(dynamic=True)
    assert [decoder.step(rows).compilations for rows in (2, 3, 4)] == [1, 0, 0]


def test_another_dtype_or_another_layout_is_another_recipe():
    compiled = torch.compile(lambda x: x * 2 + 1, backend="hpu_backend", dynamic=False)
    x = torch.randn(4, 4, device=HPU)
    before = recipes.count()
    for given in (x, x.bfloat16(), x.t(), x):
        torch.testing.assert_close(compiled(given).cpu(), (given * 2 + 1).cpu())
    made = [recipe for recipe in recipes.compilations()[before:] if recipe.mode == "compile"]
    assert len(made) == 3


def test_ops_of_a_region_are_no_recipes_of_their_own():
    compiled = torch.compile(lambda x: (x + 1).relu().sum(), backend="hpu_backend")
    x = torch.ones(8, device=HPU)
    before = counters.snapshot()
    compiled(x)
    happened = counters.since(before)
    assert (happened.compilations, happened.launches) == (1, 1)
    assert happened.ops >= 3
    assert recipes.compilations()[-1].mode == "compile"


def test_a_new_shape_is_refused_where_compilations_are():
    compiled = torch.compile(lambda x: x.exp(), backend="hpu_backend", dynamic=False)
    two, three = torch.ones(2, device=HPU), torch.ones(3, device=HPU)
    compiled(two)
    with strict.no_compilation():
        compiled(two)
        with pytest.raises(RecompilationError):
            compiled(three)


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"options": {"no_such_option": True}}, "no option 'no_such_option'"),
        ({"options": {"force_static_compile": 1}}, "True or False"),
        ({"options": {"use_graph_freezing": True}}, "does not freeze"),
        ({"mode": "reduce-overhead"}, "no mode"),
    ],
)
def test_options_that_do_not_exist_are_refused(keywords, error):
    compiled = torch.compile(lambda x: x + 1, backend="hpu_backend", **keywords)
    with pytest.raises(Exception, match=error):
        compiled(torch.ones(2, device=HPU))


def test_a_cpu_op_in_a_region_needs_the_eager_fallback():
    def program(x):
        return torch.linalg.inv(x) + 1

    x = torch.eye(2, device=HPU)
    allowed = torch.compile(program, backend="hpu_backend")
    assert allowed(x).cpu()[0, 0] == 2
    torch._dynamo.reset()
    options = {"use_eager_fallback": False}
    refused = torch.compile(program, backend="hpu_backend", options=options)
    with pytest.raises(RuntimeError, match="runs on the CPU"):
        refused(x)


def test_without_compiled_recipes_ops_run_one_by_one():
    options = {"use_compiled_recipes": False}
    compiled = torch.compile(lambda x: x.tanh() * 3, backend="hpu_backend", options=options)
    x = torch.ones(5, device=HPU)
    before = counters.snapshot()
    compiled(x)
    assert counters.since(before).launches == 2


def test_graphs_are_no_names_of_eager_mode():
    for name in ("HPUGraph", "graph", "wrap_in_hpu_graph", "ModuleCacher"):
        assert not hasattr(torch.hpu, name)
