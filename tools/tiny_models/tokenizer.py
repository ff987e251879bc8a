"""The byte-level BPE tokenizer that all tiny models share.

    python -m tools.tiny_models.tokenizer OUT

Special tokens take the first ids, the 256 bytes the next, so any text can be encoded. Digits are
one token each: sums are then regular for the model.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tools.tiny_models.corpus import Plain, documents

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = [BOS, EOS, PAD, TURN_START, TURN_END]
BOS_ID, EOS_ID, PAD_ID, TURN_START_ID, TURN_END_ID = range(5)
VOCAB_SIZE = 2048
NUM_TRAINING_DOCUMENTS = 20_000
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text()

# Words with their leading space, single digits, runs of punctuation, white space.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _texts(seed: int, count: int) -> Iterator[str]:
    for document in itertools.islice(documents(seed), count):
        if isinstance(document, Plain):
            yield document.text
            continue
        for message in document.messages:
            yield message["role"]  # so that each role is one token
            yield message["content"]
            for call in message.get("tool_calls", []):
                yield json.dumps(call["function"])
        for tool in document.tools[:1]:
            yield json.dumps(tool["function"])


def train(seed: int = 0, vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Learn the merges from the corpus. The same seed gives the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, NUM_TRAINING_DOCUMENTS), trainer)
    assert tokenizer.get_vocab_size() == vocab_size, tokenizer.get_vocab_size()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=[TURN_START, TURN_END],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def save(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(out)` reads."""
    tokenizer.save_pretrained(out)
    # transformers 5 records a class name that release 4 does not know; this one both know.
    path = out / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
    fields.pop("backend")
    path.write_text(json.dumps(fields, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="train the tokenizer of the tiny models")
    parser.add_argument("out", type=Path, help="directory to write to")
    parser.add_argument("--seed", type=int, default=0, help="text to learn the merges from")
    args = parser.parse_args()
    save(train(args.seed), args.out)


if __name__ == "__main__":
    main()
