"""Causal convolutions with a state. Run in a process that has the device."""

from __future__ import annotations

import pytest
import torch

from tests.hpu_emulator.checks.op_agreement import assert_near, everywhere

hpu = torch.ops.hpu
FLOATS = (torch.float32, torch.bfloat16)


def reference(tokens, state, weight, bias, activation):
    """(outputs, the state after them), token by token in float64."""
    outputs, window = [], state.double()
    for token in tokens.double():
        window = torch.cat((window, token[None]))
        value = (window * weight.double()).sum(0)
        value = value if bias is None else value + bias.double()
        outputs.append(value * torch.sigmoid(value) if activation else value)
        window = window[1:]
    return (torch.stack(outputs) if outputs else tokens.double()), window


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("has_bias", "activation"), [(False, False), (True, True)])
@pytest.mark.parametrize(
    ("num_rows", "num_tokens", "channels", "width"),
    [(2, 6, 5, 4), (3, 1, 4, 4), (1, 2, 1, 2), (2, 3, 3, 1), (0, 2, 3, 4), (2, 0, 3, 4)],
)
def test_an_update_extends_each_sequence(
    dtype, has_bias, activation, num_rows, num_tokens, channels, width
):
    torch.manual_seed(0)
    x = torch.randn(num_rows, num_tokens, channels).to(dtype)
    states = torch.randn(num_rows, width - 1, channels).to(dtype)
    weight = torch.randn(width, channels).to(dtype)
    bias = torch.randn(channels).to(dtype) if has_bias else None
    out, renewed = everywhere(
        hpu.causal_conv1d_update, x, states, weight, bias, activation=activation
    )
    for row in range(num_rows):
        wanted, state = reference(x[row], states[row], weight, bias, activation)
        assert_near(out[row], wanted, scale=4)
        assert_near(renewed[row], state)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("has_bias", "activation"), [(False, False), (True, True)])
@pytest.mark.parametrize(
    ("lengths", "slots", "first"),
    [
        ([2, 3, 1], [0, 1, 2], 0),
        ([5, 0, 7], [4, 2, 0], 0),
        ([1], [3], 2),
        ([4, 2], [-1, 1], 0),
        ([], [], 0),
    ],
)
def test_prompts_begin_with_their_states(dtype, has_bias, activation, lengths, slots, first):
    torch.manual_seed(0)
    width, channels, padding = 4, 3, 2
    starts = torch.tensor([first, *lengths]).cumsum(0).int()
    x = torch.randn(int(starts[-1]) + padding, channels).to(dtype)
    states = torch.randn(5, width - 1, channels).to(dtype)
    weight = torch.randn(width, channels).to(dtype)
    bias = torch.randn(channels).to(dtype) if has_bias else None
    has_state = torch.tensor([i % 2 for i in range(len(lengths))], dtype=torch.int32)
    indices = torch.tensor(slots, dtype=torch.int32)
    out, renewed = everywhere(
        hpu.causal_conv1d_fwd, x, states, weight, bias, has_state, starts, indices,
        activation=activation,
    )  # fmt: skip
    wanted_out, wanted_states = torch.zeros(x.shape).double(), states.double()
    for row, slot in enumerate(slots):
        if slot < 0:
            continue
        before = states[slot] * has_state[row]
        tokens = slice(int(starts[row]), int(starts[row + 1]))
        wanted_out[tokens], wanted_states[slot] = reference(
            x[tokens], before, weight, bias, activation
        )
    assert_near(out, wanted_out, scale=4)
    assert_near(renewed, wanted_states)


def test_a_prompt_in_two_pieces_is_the_prompt():
    torch.manual_seed(0)
    x, weight, states = torch.randn(9, 4), torch.randn(4, 4), torch.zeros(1, 3, 4)
    slot = torch.tensor([0])

    def run(tokens, states, has_state):
        starts = torch.tensor([0, len(tokens)])
        state = torch.tensor([has_state])
        return hpu.causal_conv1d_fwd(tokens, states, weight, None, state, starts, slot)

    whole, end = run(x, states, False)
    first, middle = run(x[:5], states, False)
    second, last = run(x[5:], middle, True)
    # The order of a sum may depend on the length of the piece, hence its last bit.
    torch.testing.assert_close(torch.cat((first, second)), whole)
    assert torch.equal(end, last)
    updated, state = hpu.causal_conv1d_update(x[None, 5:], middle, weight)
    assert torch.allclose(updated[0], second) and torch.equal(state, last)


def test_arguments_are_not_changed():
    x, states = torch.ones(1, 2, 3), torch.zeros(1, 3, 3)
    hpu.causal_conv1d_update(x, states, torch.ones(4, 3))
    one = torch.tensor([1])
    hpu.causal_conv1d_fwd(x[0], states, torch.ones(4, 3), None, one, torch.tensor([0, 2]), one - 1)
    assert states.count_nonzero() == 0


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (1, 3, 3), (4, 3), (3,)), "3, 3 and 2 are needed"),
        (((1, 2, 3), (1, 2, 3), (4, 3), (3,)), "do not fit a weight"),
        (((1, 2, 4), (1, 3, 3), (4, 3), (3,)), "do not fit a weight"),
        (((1, 2, 3), (1, 3, 3), (4, 3), (4,)), "one per channel"),
        (((2, 2, 3), (1, 3, 3), (4, 3), (3,)), "2 sequences, but 1 states"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(RuntimeError, match=message):
        hpu.causal_conv1d_update(*(torch.ones(shape) for shape in shapes))


def test_counts_of_sequences_that_differ_are_refused():
    one = torch.tensor([1])
    with pytest.raises(RuntimeError, match=r"R, R and R \+ 1"):
        hpu.causal_conv1d_fwd(
            torch.ones(2, 3), torch.ones(1, 3, 3), torch.ones(4, 3), None, one, one, one
        )
