"""What outputs hold, under vLLM's older path."""

from vllm.outputs import Logprob, PromptLogprobs, RequestMetrics, SampleLogprobs

__all__ = ["Logprob", "PromptLogprobs", "RequestMetrics", "SampleLogprobs"]
