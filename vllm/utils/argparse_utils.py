"""FlexibleArgumentParser under the path of newer releases of vLLM."""

from vllm.utils.argparse import FlexibleArgumentParser

__all__ = ["FlexibleArgumentParser"]
