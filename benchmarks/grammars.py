"""What grammars cost on the host: compiling a form, and filling and applying a mask per token.

    python benchmarks/grammars.py [--model DIR] [--vocab-size N]

With --vocab-size the tokenizer is a made-up one of that many tokens.
"""

from __future__ import annotations

import argparse
import random
import string
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vllm.platforms import platform_of
from vllm.sampling_params import StructuredOutputsParams
from vllm.structured_output.grammar import Grammar
from vllm.structured_output.guidance_backend import GuidanceBackend
from vllm.structured_output.xgrammar_backend import XGrammarBackend

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "tags"],
}
FORMS = {
    "json": StructuredOutputsParams(json=PERSON),
    "json_object": StructuredOutputsParams(json_object=True),
    "regex": StructuredOutputsParams(regex="[a-z]+@[a-z]+[.](com|org)"),
    "choice": StructuredOutputsParams(choice=[f"choice number {i}" for i in range(100)]),
}
EOS = 1


def made_up_tokenizer(vocab_size: int) -> Any:
    """Every byte, and random words of one to twelve letters, half of them after a space."""
    rng = random.Random(0)
    words = dict.fromkeys(["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    while len(words) < vocab_size:
        word = "".join(rng.choices(string.ascii_letters, k=rng.randint(1, 12)))
        words[rng.choice(("", "Ġ")) + word] = None
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """Median duration."""
    taken = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started_s)
    return median(taken)


def mask_seconds(start: Callable[[], Grammar], vocab_size: int) -> tuple[float, float]:
    """Median and greatest time to fill a mask, over the tokens of random texts."""
    rng = random.Random(1)
    mask = np.zeros(-(-vocab_size // 32), np.int32)
    taken: list[float] = []
    for _ in range(5):
        grammar = start()
        for _ in range(40):
            started_s = time.perf_counter()
            grammar.fill_mask(mask)
            taken.append(time.perf_counter() - started_s)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            if grammar.finished or not len(allowed):
                break
            grammar.accept(int(rng.choice(allowed)))
            if grammar.finished:
                break
    return median(taken), max(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="examples/models/tiny-story")
    parser.add_argument("--vocab-size", type=int, default=0)
    args = parser.parse_args()
    if args.vocab_size:
        tokenizer = made_up_tokenizer(args.vocab_size)
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
    vocab_size = len(tokenizer)
    print(f"{vocab_size} tokens{'':18}compile    mask median   mask max")
    for cls in (XGrammarBackend, GuidanceBackend):
        backend = cls(tokenizer, vocab_size, [EOS])
        for name, params in FORMS.items():
            compile_s = seconds(lambda: backend.compile(params).start(), 3)  # noqa: B023
            middle, most = mask_seconds(backend.compile(params).start, vocab_size)
            print(
                f"{backend.name:10} {name:12} {compile_s * 1e3:11.1f} ms "
                f"{middle * 1e6:10.0f} us {most * 1e6:10.0f} us"
            )
    # Every word of bits mixed, which is the slowest there is.
    masks = torch.randint(-(2**31), 2**31, (32, -(-vocab_size // 32))).int()
    logits = torch.randn(32, vocab_size)
    apply = platform_of("cpu").ops()["apply_token_bitmask"]
    print(f"applying masks to 32 rows: {seconds(lambda: apply(logits, masks), 50) * 1e6:.0f} us")


if __name__ == "__main__":
    main()
