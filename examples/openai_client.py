"""The `openai` client on a running server; start one with `make serve`.

python examples/openai_client.py [URL]
"""

import sys

from openai import OpenAI


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
    client = OpenAI(base_url=url, api_key="none")
    model = client.models.list().data[0].id

    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Tell me a short story."}],
        max_completion_tokens=80,
        temperature=0,
    )
    print(answer.choices[0].message.content, "\n")

    for chunk in client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=60, temperature=0.8, seed=1, stream=True
    ):
        print(chunk.choices[0].text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
