"""Small things that more than one package needs, and vLLM's names for them."""

from vllm.utils.argparse import FlexibleArgumentParser
from vllm.utils.ids import Counter, random_uuid

__all__ = ["Counter", "FlexibleArgumentParser", "random_uuid"]
