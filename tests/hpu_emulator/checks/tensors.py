"""Tensors on the emulated device behave as on any device. Run in a process that has it."""

from __future__ import annotations

import copy
import io
import pickle

import habana_frameworks.torch  # noqa: F401 - registers the device
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

HPU = torch.device("hpu")


def on_both(function, *tensors):
    """The function's result on the host, and that of the device brought to the host."""
    return function(*tensors), function(*(t.to(HPU) for t in tensors)).cpu()


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t + 1,
        lambda t: t @ t.T,
        lambda t: t.softmax(-1),
        lambda t: torch.cat([t, t[1:]]).sum(0),
        lambda t: torch.sort(t, descending=True).indices,
        lambda t: t.topk(2).values,
        lambda t: torch.where(t > 0, t, -t),
        lambda t: nn.functional.layer_norm(t, (6,)),
        lambda t: torch.stack(torch.unbind(t, 1)),
        lambda t: t.to(torch.bfloat16).float(),
        lambda t: nn.functional.conv1d(t[None], t[None, :, :3]),
        lambda t: nn.functional.scaled_dot_product_attention(t[None], t[None], t[None]),
        lambda t: t.view(2, 2, 6).permute(2, 0, 1).reshape(3, 8),
        lambda t: torch.einsum("ij,kj->ik", t, t),
        lambda t: t.unfold(1, 2, 2),
        lambda t: t.expand(3, 4, 6).cumsum(1),
    ],
)
def test_an_op_gives_what_the_host_gives(function):
    host, device = on_both(function, torch.randn(4, 6))
    torch.testing.assert_close(device, host)


def test_views_share_memory_with_their_base():
    base = torch.zeros(4, 6, device=HPU)
    view = base.view(6, 4).t()[1:3, ::2]
    view.add_(2)
    expected = torch.zeros(4, 6)
    expected.view(6, 4).t()[1:3, ::2].add_(2)
    assert view.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
    torch.testing.assert_close(base.cpu(), expected)


def test_in_place_ops_and_out_return_the_tensors_of_the_caller():
    x, out = torch.ones(3, device=HPU), torch.empty(0, device=HPU)
    assert x.mul_(2) is x
    assert x.t_() is x
    assert torch.add(x, x, out=out) is out
    assert out.tolist() == [4, 4, 4]
    values, indices = torch.empty(0, device=HPU), torch.empty(0, dtype=torch.long, device=HPU)
    torch.sort(x, out=(values, indices))
    assert values.tolist() == [2, 2, 2]


def test_metadata_changed_in_place_reaches_the_caller():
    x = torch.arange(6.0, device=HPU).view(2, 3)
    x.transpose_(0, 1).unsqueeze_(0)
    assert x.shape == (1, 3, 2)
    assert x.stride()[1:] == (1, 3)


def test_growing_keeps_the_values():
    x = torch.arange(3.0, device=HPU)
    x.resize_(5)
    assert x.shape == (5,)
    assert x[:3].tolist() == [0, 1, 2]
    assert x.resize_(2).tolist() == [0, 1]


def test_a_storage_is_shared_through_set():
    x = torch.arange(6.0, device=HPU)
    y = torch.empty(0, device=HPU).set_(x.untyped_storage(), 1, (2, 2), (2, 1))
    y.zero_()
    assert x.tolist() == [0, 0, 0, 0, 0, 5]


def test_host_and_device_do_not_mix_but_for_host_numbers():
    x = torch.ones(3, device=HPU)
    assert (x + torch.tensor(2.0)).tolist() == [3, 3, 3]
    with pytest.raises(RuntimeError, match=r"same device.*hpu:0 and cpu"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="hpu:0 and cpu"):
        torch.cat([x, torch.ones(3)])
    with pytest.raises(RuntimeError, match="cpu"):
        torch.index_select(x, 0, torch.tensor([0]))


def test_two_devices_do_not_mix_but_copy():
    x = torch.ones(3, device="hpu:1")
    assert torch.ones(1, device=HPU).device == torch.device("hpu:0")
    with pytest.raises(RuntimeError, match="hpu:1 and hpu:0"):
        x + torch.ones(3, device="hpu:0")
    y = x.to("hpu:0")
    y.add_(1)
    assert (x.tolist(), y.tolist()) == ([1, 1, 1], [2, 2, 2])
    with pytest.raises(RuntimeError, match="out of range"):
        torch.ones(1, device="hpu:99")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32, torch.bool])
def test_copies_keep_values_and_dtypes(dtype):
    host = torch.randint(0, 2, (3, 4)).to(dtype)
    there = host.to(HPU, non_blocking=True)
    assert there.dtype == dtype
    assert torch.equal(there.cpu(), host)
    assert torch.equal(torch.empty_like(there).copy_(host.t().contiguous().t()).cpu(), host)
    assert torch.equal(there.t().to("cpu"), host.t())


def test_doubles_are_stored_as_floats():
    third = torch.tensor([1 / 3], dtype=torch.float64)
    assert third.to(HPU).item() == third.float().double().item()
    assert third.float().to(HPU).double().item() != third.item()


def test_a_module_moves_to_the_device_and_back():
    module = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.SiLU())
    x = torch.randn(2, 6)
    with torch.inference_mode():
        expected = module(x)
        torch.testing.assert_close(module.to(HPU)(x.to(HPU)).cpu(), expected)
        twin = copy.deepcopy(module)
        assert twin[0].weight.device.type == "hpu"
        assert twin[0].weight.data_ptr() != module[0].weight.data_ptr()
        torch.testing.assert_close(module.cpu()(x), expected)


def test_gradients_flow():
    x = torch.randn(3, device=HPU, requires_grad=True)
    (x * x).sum().backward()
    torch.testing.assert_close(x.grad.cpu(), 2 * x.detach().cpu())


def test_saved_tensors_come_back_and_keep_sharing():
    x = torch.arange(4.0, device=HPU)
    file = io.BytesIO()
    torch.save({"a": x, "b": x[2:]}, file)
    file.seek(0)
    loaded = torch.load(file)
    loaded["a"].zero_()
    assert loaded["b"].tolist() == [0, 0]
    file.seek(0)
    assert torch.load(file, map_location="cpu")["b"].tolist() == [2, 3]
    assert torch.equal(pickle.loads(pickle.dumps(x)).cpu(), x.cpu())


def test_printing_shows_values_and_device():
    assert str(torch.tensor([1, 2]).to(HPU)) == "tensor([1, 2], device='hpu:0')"


def test_generators_cannot_be_made_but_the_device_is_seeded():
    with pytest.raises(
        RuntimeError, match=r"Device type HPU is not supported for torch\.Generator"
    ):
        torch.Generator(device="hpu")
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=HPU, generator=torch.Generator())
    torch.hpu.random.manual_seed_all(7)
    first = torch.rand(4, device=HPU).cpu()
    other = torch.rand(4, device=HPU).cpu()
    torch.manual_seed(7)
    assert torch.equal(torch.rand(4, device=HPU).cpu(), first)
    assert not torch.equal(first, other)
    state = torch.hpu.get_rng_state()
    x = torch.empty(4, device=HPU).exponential_().cpu()
    torch.hpu.set_rng_state(state)
    assert torch.equal(torch.empty(4, device=HPU).exponential_().cpu(), x)


def test_tracing_sees_the_device():
    with FakeTensorMode():
        fake = torch.ones(3, 4, device=HPU)
        assert (fake @ fake.t()).device.type == "hpu"


def test_gelu_is_its_tanh_approximation():
    x = torch.linspace(-3, 3, 50)
    there = nn.functional.gelu(x.to(HPU)).cpu()
    torch.testing.assert_close(there, nn.functional.gelu(x, approximate="tanh"))
    assert (there - nn.functional.gelu(x)).abs().max() > 1e-4


def test_an_op_without_a_kernel_is_refused_by_name():
    library = torch.library.Library("checked", "DEF")
    library.define("nothing(Tensor x) -> Tensor")
    with pytest.raises(
        NotImplementedError, match="checked::nothing is not implemented for the HPU"
    ):
        torch.ops.checked.nothing(torch.ones(1, device=HPU))


def test_memory_counts_what_lives():
    x = torch.empty(1 << 20, device=HPU)
    during = torch.hpu.memory_stats()
    assert during["InUse"] >= 4 << 20
    assert during["MaxInUse"] >= during["InUse"]
    free, total = torch.hpu.mem_get_info()
    assert (total - free, total) == (during["InUse"], during["Limit"])
    assert torch.hpu.memory_reserved() == total
    del x
    assert torch.hpu.memory_stats()["NumFrees"] == during["NumFrees"] + 1
    assert torch.hpu.memory_stats()["ActiveAllocs"] == during["ActiveAllocs"] - 1


def test_memory_that_nobody_touches_costs_the_host_nothing():
    with open("/proc/self/statm", encoding="ascii") as statm:
        before = int(statm.read().split()[1])
    cache = torch.zeros(16 << 30, dtype=torch.uint8, device=HPU)
    cache[12345] = 1
    assert cache[12345].item() == 1
    with open("/proc/self/statm", encoding="ascii") as statm:
        assert int(statm.read().split()[1]) - before < 100_000  # pages
    cache.zero_()
    assert cache[12345].item() == 0


def test_more_than_the_device_has_is_refused_as_the_driver_does():
    with pytest.raises(
        RuntimeError, match=r"MODULE:PT_DEVMEM Allocation failed for size::\d+ \(\d+\)MB"
    ):
        torch.empty(100 << 30, dtype=torch.uint8, device=HPU)


def test_autocast_takes_the_chosen_dtype():
    x = torch.randn(3, 3, device=HPU)
    with torch.autocast("hpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
    assert (x @ x).dtype == torch.float32
