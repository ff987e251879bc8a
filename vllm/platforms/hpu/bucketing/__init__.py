"""Bucketing: few shapes for launches of any size."""

from vllm.platforms.hpu.bucketing.make import make_demand, make_table
from vllm.platforms.hpu.bucketing.table import Bucket, BucketTable

__all__ = ["Bucket", "BucketTable", "make_demand", "make_table"]
