"""What a request's next-token distribution should be, in NumPy float64 and plain loops.

Written from the definitions of the parameters, not from the sampler.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vllm.sampling_params import SamplingParams

Array = NDArray[np.float64]


def penalized(
    logits: Array, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]
) -> Array:
    out = logits.copy()
    for token in set(prompt) | set(output):
        if out[token] > 0:
            out[token] /= params.repetition_penalty
        else:
            out[token] *= params.repetition_penalty
    for token in set(output):
        out[token] -= params.frequency_penalty * list(output).count(token)
        out[token] -= params.presence_penalty
    return out


def forbidden(params: SamplingParams, output: Sequence[int], eos: Iterable[int]) -> set[int]:
    """Tokens that bad words and min_tokens forbid next."""
    tokens = set()
    for word in params.bad_words_token_ids or ():
        *prefix, last = word
        if len(prefix) <= len(output) and list(output[len(output) - len(prefix) :]) == prefix:
            tokens.add(last)
    if len(output) < params.min_tokens:
        tokens |= set(params.stop_token_ids or ())
        if not params.ignore_eos:
            tokens |= set(eos)
    return tokens


def softmax(logits: Array) -> Array:
    weights: Array = np.exp(logits - logits.max())
    return weights / weights.sum()


def truncated(probabilities: Array, params: SamplingParams) -> Array:
    """min_p, then top_k, then top_p; renormalised. Ties at a boundary must not occur."""
    p = probabilities.copy()
    p[p < params.min_p * p.max()] = 0.0
    order = np.argsort(-p, kind="stable")
    if params.top_k > 0:
        p[order[params.top_k :]] = 0.0
    p /= p.sum()
    mass = 0.0
    for token in order:
        if mass >= params.top_p:
            p[token] = 0.0
        mass += p[token]
    return p / p.sum()


def distribution(
    logits: Array,
    params: SamplingParams,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    eos: Iterable[int] = (),
) -> Array:
    """Probabilities [V] of the next token."""
    banned = forbidden(params, output, eos)
    if params.allowed_token_ids is not None:
        banned |= set(range(len(logits))) - set(params.allowed_token_ids)
    biased = logits.copy()
    for token, bias in (params.logit_bias or {}).items():
        biased[token] += bias
    final = penalized(biased, params, prompt, output)
    final[list(banned)] = -np.inf
    return truncated(softmax(final / params.temperature), params)
