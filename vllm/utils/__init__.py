"""Small things that more than one package needs, and vLLM's names for them."""

from vllm.utils.argparse import FlexibleArgumentParser

__all__ = ["FlexibleArgumentParser"]
