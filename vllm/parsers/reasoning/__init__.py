"""Reasoning before an answer, in the notations of model families."""

from vllm.parsers.reasoning import granite, think_tags

__all__ = ["granite", "think_tags"]
