"""`lm-eval` through `local-completions`: its scores are those of the model itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import STORY
from tests.entrypoints.openai.real_server import NAME

pytestmark = pytest.mark.engine
# (what comes before, what may follow, which is right)
DOCUMENTS: list[tuple[str, list[str], int]] = [
    ("Once upon a", [" time", " clock", " garden"], 0),
    ("One morning, Emil came home from the", [" park", " the", " felt"], 0),
    ("He lived in a cottage with a round", [" and", " door", " sad"], 1),
    ("Emil felt", [" sad", " door", " upon"], 0),
    ("There was a curious boy", [" round", " named", " 12"], 2),
    ("What is 12 + 7?", [" 12", " felt", " time"], 1),
]
COMMON = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{before}}",
    "num_fewshot": 0,
    "metadata": {"version": 1},
}
CHOICE = {
    "task": "story_choice",
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}
GENERATE = {
    "task": "story_generate",
    "output_type": "generate_until",
    "doc_to_target": "{{continued}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {"until": ["."], "max_gen_toks": 16, "do_sample": False},
}


class Reference:
    """The model as transformers computes it."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(STORY)
        self.model = AutoModelForCausalLM.from_pretrained(STORY, dtype=torch.float32).eval()

    def ids(self, text: str) -> torch.Tensor:
        return torch.tensor([self.tokenizer.encode(text, add_special_tokens=False)])

    @torch.inference_mode()
    def loglikelihood(self, before: str, after: str) -> float:
        ids, num_before = self.ids(before + after), self.ids(before).shape[1]
        logprobs = self.model(ids).logits[0, :-1].log_softmax(-1)
        each = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        return float(each[num_before - 1 :].sum())

    @torch.inference_mode()
    def continued(self, before: str) -> str:
        """Greedily, up to the first full stop."""
        ids = self.ids(before)
        made = self.model.generate(ids, do_sample=False, max_new_tokens=16)[0, ids.shape[1] :]
        text: str = self.tokenizer.decode(made, skip_special_tokens=True)
        return text.split(".", maxsplit=1)[0]


def write_tasks(folder: Path, reference: Reference) -> None:
    data = folder / "data.jsonl"
    lines = [
        {
            "before": before,
            "choices": choices,
            "label": label,
            # Every other one wrong, so that the score is neither none nor all.
            "continued": reference.continued(before) if i % 2 else "nothing",
        }
        for i, (before, choices, label) in enumerate(DOCUMENTS)
    ]
    data.write_text("\n".join(map(json.dumps, lines)))
    source = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    for task in (CHOICE, GENERATE):
        # JSON is YAML.
        text = json.dumps({**COMMON, **task, "dataset_kwargs": source})
        (folder / f"{task['task']}.yaml").write_text(text)


def test_scores_are_those_of_the_model_itself(base_url: str, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    reference = Reference()
    write_tasks(tmp_path, reference)
    found: Any = simple_evaluate(
        model="local-completions",
        model_args={
            "model": NAME,
            "base_url": f"{base_url}/completions",
            "tokenizer": str(STORY),
            "tokenizer_backend": "huggingface",
            "num_concurrent": 2,
            "max_retries": 1,
            "max_length": 1024,
        },
        tasks=["story_choice", "story_generate"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    right = 0
    for sample, (before, choices, label) in zip(
        sorted(found["samples"]["story_choice"], key=lambda sample: sample["doc_id"]),
        DOCUMENTS,
        strict=True,
    ):
        expected = [reference.loglikelihood(before, choice) for choice in choices]
        got = [float(response[0]) for response in sample["filtered_resps"]]
        assert got == pytest.approx(expected, abs=0.01)
        right += expected.index(max(expected)) == label
    assert 0 < right < len(DOCUMENTS)
    assert found["results"]["story_choice"]["acc,none"] == right / len(DOCUMENTS)
    assert found["results"]["story_generate"]["exact_match,none"] == 0.5
