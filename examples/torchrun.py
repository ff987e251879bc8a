"""Continue prompts in every process that torchrun starts; the first one prints.

torchrun --nproc-per-node=2 examples/torchrun.py [MODEL]
"""

import os
import sys
from pathlib import Path

from vllm import LLM, SamplingParams

STORY = Path(__file__).parent / "models" / "tiny-story"


def main() -> None:
    llm = LLM(
        model=sys.argv[1] if len(sys.argv) > 1 else str(STORY),
        tensor_parallel_size=int(os.environ["WORLD_SIZE"]),
        distributed_executor_backend="external_launcher",
        seed=0,
    )
    prompts = ["Once upon a time", "One day, a little girl", "The old man"]
    params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=60)
    outputs = llm.generate(prompts, params)  # the same requests, and outputs, in every process
    if os.environ["RANK"] == "0":
        for output in outputs:
            print(f"{output.prompt} ▸{output.outputs[0].text}\n")


if __name__ == "__main__":
    main()
