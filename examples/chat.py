"""A conversation without a server: the model's chat template makes the prompt.

python examples/chat.py [MODEL]
"""

import sys
from pathlib import Path

from vllm import LLM, SamplingParams

STORY = Path(__file__).parent / "models" / "tiny-story"


def main() -> None:
    llm = LLM(model=sys.argv[1] if len(sys.argv) > 1 else str(STORY))
    params = SamplingParams(temperature=0.0, max_tokens=80)
    messages = []
    for question in ("Tell me a short story.", "What is 2 + 3?"):
        messages.append({"role": "user", "content": question})
        answer = llm.chat(messages, params, use_tqdm=False)[0].outputs[0].text
        messages.append({"role": "assistant", "content": answer})
        print(f"user:      {question}\nassistant: {answer.strip()}\n")


if __name__ == "__main__":
    main()
