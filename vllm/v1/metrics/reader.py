"""What LLM.get_metrics returns, under vLLM's path."""

from vllm.metrics.reader import Counter, Gauge, Histogram, Metric, Vector

__all__ = ["Counter", "Gauge", "Histogram", "Metric", "Vector"]
