"""What processes of one engine share, and vLLM's name for its end."""

from vllm.distributed.cleanup import cleanup_dist_env_and_memory

__all__ = ["cleanup_dist_env_and_memory"]
