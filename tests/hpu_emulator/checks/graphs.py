"""HPU graphs: keys, static results, replays without the program. Lazy mode."""

from __future__ import annotations

import gc

import habana_frameworks.torch as htorch
import pytest
import torch
from hpu_emulator import _C, counters, recipes, strict
from hpu_emulator.errors import DtypeFlipError
from torch import nn

HPU = torch.device("hpu")


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


class Layer(nn.Module):
    """Writes to a cache and reads it, in two steps, and counts how often Python runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.cache = torch.zeros(16, 8)
        self.calls = 0

    def forward(self, x, slots, scale=1.0):
        self.calls += 1
        y = self.linear(x) * scale
        self.cache.index_copy_(0, slots, y)
        htorch.core.mark_step()
        return torch.softmax(self.cache[:4] @ y.T, 0)


def layers(**options):
    """The same layer on the device, in graphs, and on the host."""
    host, device = Layer(), Layer()
    device.load_state_dict(host.state_dict())
    device.to(HPU)
    device.cache = device.cache.to(HPU)
    return host, device, torch.hpu.wrap_in_hpu_graph(device, **options)


def inputs(rows: int, first: int = 0):
    return torch.randn(rows, 8), torch.arange(first, first + rows)


@pytest.mark.parametrize("options", [{}, {"disable_tensor_cache": True}, {"dry_run": True}])
def test_replays_compute_what_the_program_computes_and_do_not_run_it(options):
    host, device, graphed = layers(**options)
    for step in range(4):
        x, slots = inputs(2, step)
        result = graphed(x.to(HPU), slots.to(HPU))
        torch.testing.assert_close(result.cpu(), host(x, slots))
    torch.testing.assert_close(device.cache.cpu(), host.cache)
    assert device.calls == 1


@pytest.mark.parametrize("disable_tensor_cache", [False, True])
def test_results_are_overwritten_by_the_next_replay(disable_tensor_cache):
    graphed = torch.hpu.wrap_in_hpu_graph_func(
        lambda x: x * 2, disable_tensor_cache=disable_tensor_cache
    )
    first = graphed(torch.ones(3, device=HPU))
    kept = first.clone()
    second = graphed(torch.full((3,), 5.0, device=HPU))
    assert first.cpu().tolist() == second.cpu().tolist() == [10.0] * 3
    assert kept.cpu().tolist() == [2.0] * 3


@pytest.mark.parametrize("disable_tensor_cache", [False, True])
def test_a_change_in_place_happens_once_per_call(disable_tensor_cache):
    total = torch.zeros(2, device=HPU)
    graphed = torch.hpu.wrap_in_hpu_graph_func(
        total.add_, disable_tensor_cache=disable_tensor_cache
    )
    for _ in range(3):
        graphed(torch.ones(2, device=HPU))
    assert total.cpu().tolist() == [3.0, 3.0]


def test_an_input_that_is_returned_is_that_of_the_call():
    graphed = torch.hpu.wrap_in_hpu_graph_func(
        lambda x, y: {"x": x[1:], "sum": x + y}, disable_tensor_cache=True
    )
    for value in (1.0, 2.0):
        x = torch.full((3,), value, device=HPU)
        result = graphed(x, x)
        assert result["x"].cpu().tolist() == [value] * 2
        assert result["sum"].cpu().tolist() == [2 * value] * 3


def test_keys_see_shapes_strides_offsets_and_values_but_not_dtypes():
    key = torch.hpu.graphs.input_hash
    x = torch.zeros(4, 4, device=HPU)
    assert key((x,)) == key([torch.ones(4, 4, device=HPU)])
    assert key(x) == key(x.int())
    assert key({"x": x, "n": [1]}) == key({"x": x, "n": (1,)})
    for other in (x[:2], x.t(), x[:, 1:]):
        assert key(x) != key(other)
    assert key(x[:2]) != key(x[2:])
    assert key(1) != key(2)
    assert key("a") != key("b")
    with torch.autocast("hpu", dtype=torch.bfloat16):
        inside = key(x)
    assert inside != key(x)
    with pytest.raises(TypeError, match="unhashable"):
        key({1, 2})


def test_a_number_among_the_inputs_makes_a_graph_per_value():
    _, device, graphed = layers()
    x, slots = inputs(2)
    for scale in (1.0, 2.0, 1.0, 2.0):
        graphed(x.to(HPU), slots.to(HPU), scale=scale)
    assert device.calls == 2


def test_a_dtype_flip_under_one_key_is_silent_unless_it_is_forbidden():
    graphed = torch.hpu.wrap_in_hpu_graph_func(lambda x: x + 1, disable_tensor_cache=True)
    graphed(torch.ones(4, device=HPU))
    ints = torch.full((4,), 7, dtype=torch.int32, device=HPU)
    assert graphed(ints).dtype == torch.float32
    with strict.strict("dtype"), pytest.raises(DtypeFlipError, match=r"torch\.int32"):
        graphed(ints)
    with pytest.raises(RuntimeError, match="its dtype is not the one"):
        graphed(torch.ones(4, dtype=torch.bfloat16, device=HPU))


def test_a_dtype_flip_into_static_inputs_converts_values():
    graphed = torch.hpu.wrap_in_hpu_graph_func(lambda x: x + 1)
    graphed(torch.ones(4, device=HPU))
    assert graphed(torch.full((4,), 7, dtype=torch.int32, device=HPU)).cpu().tolist() == [8.0] * 4


def test_static_inputs_are_the_tensors_of_the_first_call():
    graphed = torch.hpu.wrap_in_hpu_graph_func(lambda x: x + 1)
    first = torch.ones(2, device=HPU)
    graphed(first)
    graphed(torch.full((2,), 9.0, device=HPU))
    assert first.cpu().tolist() == [9.0, 9.0]


def test_beyond_max_graphs_the_program_runs():
    _, device, graphed = layers(max_graphs=2)
    for rows in (1, 2, 3, 3, 2, 1):
        x, slots = inputs(rows)
        graphed(x.to(HPU), slots.to(HPU))
    assert device.calls == 4


def test_bypass_and_warmup_mode():
    _, device, graphed = layers(disable_tensor_cache=True)
    x, slots = (t.to(HPU) for t in inputs(2))
    graphed(x, slots, bypass_hpu_graphs=True)
    result = graphed(x, slots)
    before = counters.snapshot()
    assert graphed(x, slots, warmup_mode=True) is result
    assert counters.since(before).launches == 0
    assert device.calls == 2


def test_a_replay_launches_the_recipes_of_the_capture_and_compiles_none():
    _, _, graphed = layers(disable_tensor_cache=True)
    graphed(*(t.to(HPU) for t in inputs(3)))
    before = counters.snapshot()
    graphed(*(t.to(HPU) for t in inputs(3, 5)))
    happened = counters.since(before)
    assert (happened.compilations, happened.launches, happened.syncs) == (0, 2, 0)


@pytest.mark.parametrize(
    ("what", "program"),
    [
        ("host read", lambda x: x.sum().item()),
        ("a copy to the host", lambda x: x.cpu()),
        ("a copy to the host", lambda x: x.to("cpu", non_blocking=True)),
        ("copy from the host", lambda x: x + torch.tensor([1.0, 2.0]).to(HPU)),
        ("data-dependent", lambda x: x.nonzero()),
        ("runs on the CPU", lambda x: torch.linalg.inv(x @ x.T)),
        ("host read", lambda x: torch.hpu.synchronize()),
    ],
)
def test_what_a_replay_could_not_repeat_ends_the_capture(what, program):
    graphed = torch.hpu.wrap_in_hpu_graph_func(program)
    x = torch.ones(2, 2, device=HPU)
    with pytest.raises(RuntimeError, match=f"{what}.*not supported during hpu graph capturing"):
        graphed(x)
    assert not _C.is_capturing()
    assert (x + 1).cpu().tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_graphs_take_memory_until_they_are_cleared():
    x = torch.zeros(256, 1024, device=HPU)
    before = torch.hpu.memory_allocated()

    def program(x):
        return ((x + 1) * 2 - 3).sum()

    def charged(disable_tensor_cache: bool) -> int:
        graphed = torch.hpu.wrap_in_hpu_graph_func(
            program, disable_tensor_cache=disable_tensor_cache
        )
        graphed(x)
        taken = _C.memory_stats(0)["Graphs"]
        graphed.clear_cache()
        assert _C.memory_stats(0)["Graphs"] == 0
        return taken

    assert charged(disable_tensor_cache=False) == 3 << 20
    assert charged(disable_tensor_cache=True) == 2 << 20
    gc.collect()
    assert torch.hpu.memory_allocated() - before <= 4 << 20


def test_capture_fails_where_the_device_has_no_memory_left_for_the_graph():
    x = torch.zeros(1 << 20, device=HPU)
    x.add_(0)
    torch.hpu.synchronize()
    limit = _C.memory_stats(0)["Limit"]
    graphed = torch.hpu.wrap_in_hpu_graph_func(lambda x: (x + 1).mul(2).sum())
    _C.set_memory_limit(0, _C.memory_stats(0)["InUse"] + (10 << 20))
    try:
        with pytest.raises(RuntimeError, match="Allocation failed for size"):
            for rows in range(4):
                graphed(x[: len(x) - rows])
    finally:
        _C.set_memory_limit(0, limit)
    graphed.clear_cache()
    assert graphed(x).item() == 2 << 20


def test_the_raw_graph():
    hpu_graph, stream = torch.hpu.HPUGraph(), torch.hpu.Stream()
    x, y = torch.ones(2, device=HPU), torch.ones(2, device=HPU)
    with pytest.raises(RuntimeError, match="has not been captured"):
        hpu_graph.replay()
    with torch.hpu.graph(hpu_graph, stream=stream):
        result = x * 3
        hpu_graph.mark_user_inputs([x, y])
        hpu_graph.mark_user_outputs([result])
    assert hpu_graph.get_user_input_match_indices() == [0]
    x.fill_(2.0)
    hpu_graph.replay()
    assert result.cpu().tolist() == [6.0, 6.0]
    hpu_graph.replayV2([x], [torch.full((2,), 4.0, device=HPU)])
    assert result.cpu().tolist() == [12.0, 12.0]
    hpu_graph.clear_inputs()
    with pytest.raises(RuntimeError, match="was cleared"):
        hpu_graph.replay()
    hpu_graph.replayV3([torch.full((2,), 5.0, device=HPU), y])
    assert result.cpu().tolist() == [15.0, 15.0]
    with pytest.raises(RuntimeError, match="2 inputs, not 1"):
        hpu_graph.replayV3([x])
    with (
        torch.hpu.graph(torch.hpu.HPUGraph()),
        pytest.raises(RuntimeError, match="inside the capture of another"),
    ):
        torch.hpu.HPUGraph().capture_begin()


def test_views_lists_and_numbers_of_the_host_are_replayed():
    def program(x, ids):
        left, right = x.split(2, dim=1)
        picked = torch.cat([left.t(), right.t()])[:, ids]
        return picked[torch.newaxis].expand(2, -1, -1) * 0.5 + torch.where(picked > 0, 1.0, 2.0)

    graphed = torch.hpu.wrap_in_hpu_graph_func(program, disable_tensor_cache=True)
    for _ in range(3):
        x, ids = torch.randn(3, 4), torch.randint(0, 3, (2,))
        torch.testing.assert_close(graphed(x.to(HPU), ids.to(HPU)).cpu(), program(x, ids))


def test_inputs_that_share_memory_must_go_on_sharing_it():
    graphed = torch.hpu.wrap_in_hpu_graph_func(lambda a, b: a + b, disable_tensor_cache=True)
    x = torch.arange(4.0).to(HPU)
    graphed(x[:2], x[2:])
    assert graphed(x[:2], x[2:]).cpu().tolist() == [2.0, 4.0]
    with pytest.raises(RuntimeError, match="shared its memory"):
        graphed(x[:2], torch.zeros(4, device=HPU)[2:])


def test_random_ops_draw_anew_in_each_replay():
    graphed = torch.hpu.wrap_in_hpu_graph_func(torch.rand_like)
    x = torch.zeros(8, device=HPU)
    first = graphed(x).clone()
    assert not torch.equal(first.cpu(), graphed(x).cpu())


def test_in_compile_only_mode_a_graph_is_made_and_not_run():
    from habana_frameworks.torch.internal import bridge_config

    cache = torch.zeros(4, device=HPU)
    graphed = torch.hpu.wrap_in_hpu_graph_func(
        lambda x: cache.add_(x).sum(), disable_tensor_cache=True
    )
    x = torch.ones(4, device=HPU)
    htorch.core.mark_step()
    recipes.forget()
    with bridge_config.env_setting("PT_COMPILE_ONLY_MODE", True):
        graphed(x)
        graphed(x)
    assert recipes.launches() == 0
    assert recipes.count() == 1
    assert cache.cpu().tolist() == [0.0] * 4
    assert graphed(x).item() == 4.0
    with pytest.raises(KeyError):
        bridge_config.env_setting("PT_NO_SUCH_FLAG", True).__enter__()


def test_graphed_callables_and_cached_modules():
    linear = nn.Linear(2, 2).requires_grad_(False).to(HPU)
    x = torch.ones(1, 2, device=HPU)
    expected = linear(x).cpu()
    made = torch.hpu.make_graphed_callables(linear, (x,))
    torch.testing.assert_close(made(x).cpu(), expected)
    cached = torch.hpu.ModuleCacher(max_graphs=1)(
        nn.Linear(2, 2).to(HPU), use_lfu=True, inplace=False, verbose=True, log_frequency=1
    )
    for rows in (1, 2, 1):
        assert cached(torch.ones(rows, 2, device=HPU)).shape == (rows, 2)
    with pytest.raises(NotImplementedError, match="backward"):
        torch.hpu.ModuleCacher()(linear, have_grad_accumulation=True)
