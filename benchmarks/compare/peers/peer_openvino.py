"""Adapter of OpenVINO GenAI: continuous batching of token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
import openvino_genai as genai


class Engine:
    def __init__(self, settings: dict[str, Any]) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = settings["kv_gib"]
        scheduler.max_num_seqs = settings["max_num_seqs"]
        scheduler.max_num_batched_tokens = 2048
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": settings["threads"], **settings["options"]}
        self.pipeline = genai.ContinuousBatchingPipeline(
            settings["model"], scheduler, "CPU", properties
        )

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        config = genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        inputs = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        outputs = self.pipeline.generate(inputs, [config] * len(prompts))
        return [output.m_generation_ids[0] for output in outputs]


def load(settings: dict[str, Any]) -> Engine:
    return Engine(settings)
