"""Log-probabilities under vLLM's path."""

from vllm.outputs import Logprob, PromptLogprobs, SampleLogprobs

__all__ = ["Logprob", "PromptLogprobs", "SampleLogprobs"]
