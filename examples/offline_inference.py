"""Continue prompts without a server.

python examples/offline_inference.py [MODEL]
"""

import sys
from pathlib import Path

from vllm import LLM, SamplingParams

STORY = Path(__file__).parent / "models" / "tiny-story"


def main() -> None:
    llm = LLM(model=sys.argv[1] if len(sys.argv) > 1 else str(STORY))
    prompts = ["Once upon a time", "One day, a little girl", "The old man"]
    params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=60, seed=1)
    for output in llm.generate(prompts, params):
        print(f"{output.prompt} ▸{output.outputs[0].text}\n")


if __name__ == "__main__":
    main()
