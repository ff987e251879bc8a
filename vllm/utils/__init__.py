"""Small things that more than one package needs, and vLLM's names for them."""

from vllm.utils.argparse import FlexibleArgumentParser
from vllm.utils.ids import Counter, random_uuid
from vllm.utils.network_utils import get_open_port

__all__ = ["Counter", "FlexibleArgumentParser", "get_open_port", "random_uuid"]
