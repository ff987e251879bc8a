"""Train the tiny models.

    python -m tools.tiny_models.train [NAME ...] [--out examples/models] [--threads 2] [--scale 1]

Each model is trained on text that is generated while it trains, evaluated, given its card, and only
then moved to its place under `--out`.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tools.tiny_models import card
from tools.tiny_models import tokenizer as tokenizers
from tools.tiny_models.data import TokenStream, copying_rows
from tools.tiny_models.evaluate import evaluate
from tools.tiny_models.initialise import initialise
from tools.tiny_models.recipes import RECIPES, Recipe
from tools.tiny_models.tokenizer import BOS_ID, EOS_ID, PAD_ID, TURN_END_ID

SHORT, LONG = 512, 1024  # tokens per sequence
EMBEDDING_LR = 3.0  # factor on the learning rate


def schedule(recipe: Recipe, step: int, num_steps: int) -> float:
    """Factor on the peak learning rate: linear warm-up, then linear decay to a fiftieth."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    return max(0.02, (num_steps - step) / max(1, num_steps - recipe.warmup_steps))


def optimizer_for(model: PreTrainedModel, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW without weight decay on norms; embeddings start large and learn faster."""
    embeddings = model.get_input_embeddings().weight
    layers = [p for p in model.parameters() if p.dim() > 1 and p is not embeddings]
    norms = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW(
        [
            {"params": layers, "weight_decay": 0.1, "peak_lr": recipe.peak_lr},
            {"params": norms, "weight_decay": 0.0, "peak_lr": recipe.peak_lr},
            {"params": [embeddings], "weight_decay": 0.1, "peak_lr": EMBEDDING_LR * recipe.peak_lr},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )


def loss_of(model: PreTrainedModel, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted cross entropy of the next token, and the router's balance loss where there is one.

    Args:
        ids: [rows, length].
        weights: [rows, length], the weight of predicting each token.
    """
    with torch.autocast("cpu", torch.bfloat16):
        output = model(input_ids=ids, use_cache=False)
    logits = output.logits[:, :-1].float().flatten(0, 1)
    weights = weights[:, 1:].flatten()
    entropy = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    loss = (entropy * weights).sum() / weights.sum()
    if model.config.model_type == "mixtral":
        loss = loss + model.config.router_aux_loss_coef * output.aux_loss
    return loss


def fit(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, num_steps: int) -> PreTrainedModel:
    """Train from scratch for `num_steps` steps."""
    torch.manual_seed(recipe.seed)
    config = recipe.config()
    is_moe = config.model_type == "mixtral"
    config.output_router_logits = is_moe
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    initialise(model, recipe.seed)
    optimizer = optimizer_for(model, recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    stream = TokenStream(tokenizer, recipe.seed)
    progress = tqdm(range(num_steps), desc=recipe.name, unit="step", mininterval=5.0)
    smooth = float("nan")
    for step in progress:
        is_long = step >= num_steps * (1 - recipe.long_share)
        shape = (recipe.rows // 2, LONG) if is_long else (recipe.rows, SHORT)
        ids, weights = stream.take(*shape)
        if step < num_steps * recipe.copying_share:
            num_copying = recipe.rows // 4
            copied = copying_rows(num_copying, SHORT, generator)
            ids[:num_copying], weights[:num_copying] = copied
        loss = loss_of(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(recipe, step, num_steps)
        optimizer.step()
        optimizer.zero_grad()
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        progress.set_postfix(loss=f"{smooth:.3f}", refresh=False)
    model.config.output_router_logits = False
    return model.eval()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write weights in bfloat16, configuration and tokenizer."""
    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID,
        eos_token_id=[TURN_END_ID, EOS_ID],
        pad_token_id=PAD_ID,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
    )
    model.save_pretrained(out)
    tokenizers.save(tokenizer, out)


def produce(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, out: Path, scale: float) -> None:
    """Train, evaluate and describe one model; replace what is at `out` file by file."""
    num_steps = max(1, round(recipe.num_steps * scale))
    started_s = time.monotonic()
    model = fit(recipe, tokenizer, num_steps)
    training_s = time.monotonic() - started_s
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".training-") as work:
        save(model, tokenizer, Path(work))
        result = evaluate(Path(work))
        facts = card.Training(num_steps, training_s, torch.get_num_threads())
        (Path(work) / "README.md").write_text(card.write(recipe, Path(work), result, facts))
        (Path(work) / "evaluation.json").write_text(json.dumps(result.as_dict(), indent=2) + "\n")
        for path in sorted(Path(work).iterdir()):
            path.chmod(0o644)
            os.replace(path, out / path.name)
    print(f"{recipe.name}: {training_s:.0f} s, {result.describe()}")


def main() -> None:
    parser = argparse.ArgumentParser(description="train the tiny models")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to train; default: all")
    parser.add_argument("--out", type=Path, default=Path("examples/models"), help="where to write")
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps")
    args = parser.parse_args()
    unknown = set(args.names) - set(RECIPES)
    if unknown:
        parser.error(f"no recipe for {', '.join(sorted(unknown))}; there are {', '.join(RECIPES)}")
    torch.set_num_threads(args.threads)
    tokenizer = tokenizers.train()
    for name in args.names or RECIPES:
        produce(RECIPES[name], tokenizer, args.out / name, args.scale)


if __name__ == "__main__":
    main()
