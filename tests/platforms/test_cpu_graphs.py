"""CPU graphs: a replay gives the bits of the call, and what cannot be replayed is not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.ops.overrides import isas
from tests.platforms.stage import Stage, check_stage, inputs_of
from vllm.device.graphs import EagerRunner, Forward
from vllm.device.launch import Phase, ShapeKey
from vllm.distributed.groups import Group
from vllm.distributed.place import Place
from vllm.platforms.cpu import graphs
from vllm.platforms.cpu.attention import NativeAttention, TorchAttention
from vllm.platforms.cpu.graphs import CpuGraphRunner

pytestmark = pytest.mark.skipif(not isas(), reason="the kernels were not built")


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def capture(call: Callable[[Tensor], Tensor], x: Tensor, *constants: Tensor):
    """(the graph, why it is none) of one call."""
    graph = torch.classes.vllm.Graph([x], list(constants))
    return graph, graph.end(call(x))


WEIGHT = torch.randn(4, generator=torch.Generator().manual_seed(1))
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "views": lambda x: x.view(3, 2, 2).transpose(0, 1).reshape(3, 4),
    "lists out": lambda x: x.split([1, 3], dim=-1)[1],
    "lists in": lambda x: torch.cat([x, x * 2.0], dim=-1),
    "factories": lambda x: torch.zeros_like(x).add_(x),
    "in place": lambda x: x.exp().mul_(3).sub_(x),
    "constants": lambda x: torch.ops.vllm.rms_norm(x, WEIGHT, 1e-6),
    "pairs": lambda x: torch.ops.vllm.fused_add_rms_norm(x, x, WEIGHT, 1e-6)[1],
    "composites": lambda x: x.unflatten(-1, (2, 2)).flatten(1).softmax(-1),
    "indices": lambda x: x[torch.arange(2), 1:],
    "no op": lambda x: x,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_replay_calls_the_same_ops_with_other_inputs(name):
    call = CALLS[name]
    first, second = (torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 9))
    graph, refusal = capture(call, first, WEIGHT)
    assert not refusal
    for x in (second, first, second):
        torch.testing.assert_close(graph.replay([x]), call(x), rtol=0, atol=0)


def test_writes_to_constants_are_replayed():
    cache, x = torch.zeros(2, 4), torch.ones(1, 4)

    def write(x: Tensor) -> Tensor:
        return cache[1:].copy_(x)

    graph, refusal = capture(write, x, cache)
    assert not refusal
    graph.replay([x * 5])
    assert cache.tolist() == [[0.0] * 4, [5.0] * 4]


def test_intermediate_results_are_freed():
    graph, _ = capture(lambda x: (x + 1).mul_(2), torch.zeros(2))
    first = graph.replay([torch.zeros(2)])
    kept = first.clone()
    graph.replay([torch.ones(2)])
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda x: x * x.sum().item(), "else than tensors"),
        (lambda x: x + torch.tensor([3.0]), "values of Python"),
        (lambda x: x @ WEIGHT, "no op made"),
        (lambda x: torch.from_numpy(x.numpy() + 1), "values of Python"),
        (lambda x: x[x.nonzero().squeeze(1)], "size depends on values"),
        (lambda x: x[x > 0], "size depends on values"),
        (lambda x: x.masked_select(x > 0), "size depends on values"),
        (lambda x: torch.where(x > 0)[0] + 1, "size depends on values"),
        (lambda x: torch.argwhere(x > 0) + 1, "size depends on values"),
        (
            lambda x: torch.repeat_interleave(x, torch.ones_like(x, dtype=torch.long)) + 1,
            "size depends on values",
        ),
        (lambda x: torch.combinations(x)[0], "size depends on values"),
        (lambda x: torch.bincount(x.int(), minlength=3), "size depends on values"),
    ],
    ids=[
        *("values", "new constant", "undeclared constant", "numpy"),
        *(
            "nonzero",
            "mask",
            "masked select",
            "where",
            "argwhere",
            "repeat interleave",
            "combinations",
            "bincount",
        ),
    ],
)
def test_what_a_replay_would_not_see_is_refused(call, reason):
    graph, refusal = capture(call, torch.ones(4))
    assert reason in refusal
    with pytest.raises(RuntimeError, match="not captured"):
        graph.replay([torch.ones(4)])


def test_one_capture_at_a_time_and_none_after_an_error():
    stranger = torch.ones(1)
    graph = torch.classes.vllm.Graph([], [])
    with pytest.raises(RuntimeError, match="already"):
        torch.classes.vllm.Graph([], [])
    assert graph.end(stranger)
    del graph
    assert capture(CALLS["views"], torch.ones(3, 4))[1] == ""


def test_a_graph_tells_how_many_inputs_it_has():
    graph, _ = capture(CALLS["views"], torch.ones(3, 4))
    with pytest.raises(RuntimeError, match="1 inputs was given 2"):
        graph.replay([torch.ones(3, 4)] * 2)


class Doubling(torch.nn.Module):
    """A model that counts how often Python runs it."""

    def __init__(self, backend: type = NativeAttention) -> None:
        super().__init__()
        self.backends = (backend(),)
        self.calls = 0
        self.fails = False

    def forward(self, inputs, metas):
        self.calls += 1
        if self.fails:
            raise ValueError("as told")
        return inputs.token_ids * 2 + inputs.positions + metas[0][0]


def step(runner: CpuGraphRunner, model: Doubling, rows: int, phase: Phase = Phase.DECODE) -> None:
    ids = torch.randint(100, (rows,))
    inputs = graphs_inputs(ids, torch.arange(rows))
    key = ShapeKey(phase, rows, 1, int(ids[0]))
    hidden = runner.run(key, model, inputs, [(torch.ones(rows), 7)])
    assert torch.equal(hidden, ids * 2 + torch.arange(rows) + 1)


def graphs_inputs(token_ids: Tensor, positions: Tensor):
    from vllm.device.launch import TokenInputs

    return TokenInputs(token_ids, positions)


def test_the_second_decode_step_of_a_size_is_captured():
    runner, model = CpuGraphRunner(), Doubling()
    for _ in range(5):
        step(runner, model, 3)
        step(runner, model, 3, Phase.MIXED)
    assert model.calls == 2 + 5
    step(runner, model, 4)
    assert model.calls == 2 + 5 + 1
    runner.close()
    step(runner, model, 3)
    assert model.calls == 2 + 5 + 2


def test_the_least_recently_used_graph_goes(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    runner, model = CpuGraphRunner(), Doubling()
    for rows in (1, 2, 1, 2, 1, 3, 3):  # graphs of 1, 2 and 3: that of 2 makes room
        step(runner, model, rows)
    calls = model.calls
    step(runner, model, 1)
    step(runner, model, 3)
    assert model.calls == calls
    step(runner, model, 2)
    assert model.calls == calls + 1


def test_attention_that_takes_numbers_and_large_steps_run_eagerly(monkeypatch):
    runner, model = CpuGraphRunner(), Doubling(TorchAttention)
    for _ in range(4):
        step(runner, model, 3)
    assert model.calls == 4
    monkeypatch.setattr(graphs, "MOST_ROWS", 2)
    runner, model = CpuGraphRunner(), Doubling()
    for _ in range(4):
        step(runner, model, 3)
    assert model.calls == 4


@pytest.mark.parametrize(
    "read", [lambda x: sum(x.tolist()), lambda x: int(x.numpy().sum())], ids=["tolist", "numpy"]
)
def test_values_that_python_reads_without_an_op_keep_a_model_from_being_captured(read):
    class Reader(Doubling):
        def forward(self, inputs, metas):
            shift = read(inputs.positions)
            return super().forward(inputs, metas) + shift - int(inputs.positions.shape[0] // 2 * 3)

    runner, model = CpuGraphRunner(), Reader()
    for _ in range(5):
        step(runner, model, 3)  # positions 0, 1 and 2: their sum is what is taken off again
    assert model.calls == 5


def test_an_error_of_the_model_is_the_callers():
    runner, model = CpuGraphRunner(), Doubling()
    step(runner, model, 3)
    model.fails = True
    with pytest.raises(ValueError, match="as told"):
        step(runner, model, 3)
    model.fails = False
    step(runner, model, 3)
    calls = model.calls
    step(runner, model, 3)
    assert model.calls == calls


def test_inputs_of_another_kind_are_captured_and_replayed():
    runner = CpuGraphRunner()
    stage = check_stage(runner, torch.device("cpu"), captures=lambda rows: False)
    assert stage.calls == 3 * 2, "the third and fourth step of a size are replays"
    assert check_stage(EagerRunner(), torch.device("cpu"), lambda rows: True).calls == 3 * 4


def test_an_error_while_inputs_of_another_kind_are_captured_ends_the_capture():
    class Failing(Stage):
        def forward(self, inputs, metas):
            if self.calls == 1:
                raise ValueError("as told")
            return super().forward(inputs, metas)

    runner, forward = CpuGraphRunner(), Forward(Failing(), ())
    key, inputs = ShapeKey(Phase.DECODE, 2, 1, 2), inputs_of(2, 0)
    runner.run(key, forward, inputs, ())
    with pytest.raises(ValueError, match="as told"):
        runner.run(key, forward, inputs, ())
    assert capture(CALLS["views"], torch.ones(3, 4))[1] == "", "no capture is left open"


def test_eager_mode_and_sums_between_machines_have_no_graphs():
    from vllm.platforms.cpu import CpuPlatform

    def runner_of(eager: bool, memory: str) -> object:
        config = SimpleNamespace(device=SimpleNamespace(enforce_eager=eager))
        place = Place(0, 2, 0, tp=Group(0, 2), memory=memory)
        return CpuPlatform().graph_runner(config, place)

    assert isinstance(runner_of(False, "/shared"), CpuGraphRunner)
    assert not isinstance(runner_of(True, "/shared"), CpuGraphRunner)
    assert not isinstance(runner_of(False, ""), CpuGraphRunner)
