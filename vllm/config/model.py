"""Which model to run, and what its checkpoint says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vllm.config.kinds import INT, OBJECT, OBJECT_OR_FUNCTION, TEXT_OR_OBJECT, TEXTS
from vllm.config.option import option

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from vllm.transformers_utils.config import Config

# Names of config.json for the number of experts of a layer.
_NUMBERS_OF_EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts")

DTYPE_NAMES = ("auto", "half", "float16", "bfloat16", "float", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    model: str = option(
        "",
        local=True,
        help="Model to run: a local directory or a name on the Hugging Face hub.",
    )
    tokenizer: str = option(
        "",
        auto="the model's own",
        folded=True,
        local=True,
        help="Tokenizer to use, if not the one that comes with the model: a directory or a name.",
    )
    tokenizer_mode: str = option(
        "auto",
        choices=("auto", "slow"),
        help="auto: the fast tokenizer where there is one; slow: the one written in Python.",
    )
    skip_tokenizer_init: bool = option(
        False,
        help="Do without a tokenizer: prompts must be token ids, and outputs are token ids only.",
    )
    trust_remote_code: bool = option(
        False, help="Let transformers run Python code that comes with the checkpoint."
    )
    revision: str = option("main", folded=True, help="Branch, tag or commit of a model on the hub.")
    code_revision: str = option(
        "", auto="the revision", folded=True, help="Branch, tag or commit of the model's own code."
    )
    tokenizer_revision: str = option(
        "", auto="the revision", help="Branch, tag or commit of the tokenizer."
    )
    hf_config_path: str = option(
        "",
        auto="the model",
        folded=True,
        local=True,
        help="Take config.json from this directory or name instead of the model's.",
    )
    hf_token: str = option(
        "",
        auto="the one of the hub login",
        secret=True,
        folded=True,
        help="Token for private models on the hub.",
    )
    hf_overrides: Mapping[str, Any] = option(
        {},
        kind=OBJECT_OR_FUNCTION,
        folded=True,
        help="Values to set in the checkpoint's config.json. In Python also a function from config "
        "to config.",
    )
    dtype: torch.dtype = option(
        "auto",
        kind=TEXT_OR_OBJECT,
        auto="the checkpoint's where the device computes in it",
        help="Type of weights and activations: " + ", ".join(DTYPE_NAMES) + ".",
    )
    seed: int = option(
        0, low=0, help="Seed of the draws of requests that bring no seed of their own."
    )
    max_model_len: int = option(
        None,
        kind=INT,
        low=1,
        auto="the checkpoint's limit",
        help="Most tokens of one request, prompt and output together.",
    )
    served_model_name: tuple[str, ...] = option(
        (),
        kind=TEXTS,
        auto="the value of --model",
        local=True,
        help="Names under which the server offers the model; the first is the one in replies.",
    )
    model_impl: str = option(
        "auto",
        choices=("auto", "vllm", "transformers"),
        help="auto: our own implementation, else the one of transformers; or insist on either.",
    )
    disable_sliding_window: bool = option(
        False,
        folded=True,
        help="Attend to everything and limit --max-model-len to the model's window instead.",
    )
    max_logprobs: int = option(
        20,
        low=-1,
        help="Most log-probabilities a request may ask for per token; -1: as many as there are "
        "tokens.",
    )
    logprobs_mode: str = option(
        "raw_logprobs",
        choices=("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"),
        help="What is reported: before (raw) or after (processed) penalties, temperature and the "
        "like; normalised (logprobs) or not (logits).",
    )
    generation_config: str = option(
        "auto",
        folded=True,
        local=True,
        help="Where default sampling parameters come from: auto: the model's "
        "generation_config.json; vllm: nowhere; or another directory.",
    )
    override_generation_config: Mapping[str, Any] = option(
        {},
        kind=OBJECT,
        folded=True,
        help='Default sampling parameters that win over the model\'s, such as {"temperature": '
        "0.5}.",
    )

    path: Path  # directory that holds the checkpoint
    tokenizer_path: Path
    hf_config: Config  # of the text model
    architecture: str
    vocab_size: int
    eos_token_ids: frozenset[int]
    default_sampling_params: Mapping[str, Any]  # in the names of SamplingParams

    @property
    def has_experts(self) -> bool:
        """Whether layers are mixtures of experts."""
        facts = self.hf_config.to_dict()
        return any(facts.get(name) for name in _NUMBERS_OF_EXPERTS)
