"""What happens to logits between the model and the draw, in this order."""

from __future__ import annotations

from typing import Final

from vllm.sample.stages.allowed_tokens import AllowedTokens
from vllm.sample.stages.bad_words import BadWords
from vllm.sample.stages.base import Stage
from vllm.sample.stages.custom_processors import CustomProcessors
from vllm.sample.stages.grammar import GrammarMask
from vllm.sample.stages.logit_bias import LogitBias
from vllm.sample.stages.min_p import MinP
from vllm.sample.stages.min_tokens import MinTokens
from vllm.sample.stages.penalties import Penalties
from vllm.sample.stages.temperature import Temperature
from vllm.sample.stages.top_k_top_p import TopKTopP

STAGES: Final[tuple[Stage, ...]] = (
    AllowedTokens(),
    BadWords(),
    MinTokens(),
    LogitBias(),
    Penalties(),
    CustomProcessors(),
    GrammarMask(),  # after all that may raise a logit: what it forbids stays forbidden
    Temperature(),
    MinP(),
    TopKTopP(),
)
