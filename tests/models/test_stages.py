"""Stages of a pipeline, one after the other, compute what the whole model computes, to the bit."""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from tests.models import cacheless
from tests.models.harness import Harness, config_for
from tests.models.ranks import InThread, on_ranks
from tests.models.test_ranks import FOREIGN, References
from tests.ops.overrides import isas
from tools.tiny_models import random_checkpoint
from vllm.config.vllm import VllmConfig
from vllm.device.collectives import Collectives
from vllm.device.launch import Phase, ShapeKey
from vllm.distributed.groups import SINGLE, Group
from vllm.distributed.stages import PARTITION
from vllm.errors import ConfigError, LoadError
from vllm.loader import load_model, reload_weights
from vllm.models.interfaces import Model
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.cpu.graphs import CpuGraphRunner

FALLBACK = [*sorted(FOREIGN), "llama", "llama-dynamic-rope", "gemma2", "granite", "mixtral"]
CASES = [(arch, "auto") for arch in random_checkpoint.ARCHITECTURES]
CASES += [(arch, "transformers") for arch in FALLBACK if arch not in FOREIGN]
FILE = "model.safetensors"
# Whole prompts, the rest of a chunked one, decode, and a row that starts while others decode.
STEPS = [(5, 17, 0), (1, 9, 0), (1, 1, 23), (1, 1, 1), (0, 1, 1)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda arch: random_checkpoint.make(arch, root / arch))


def loaded(
    config: VllmConfig, pp: Group = SINGLE, tp: Collectives | None = None, native: bool = True
) -> Model:
    platform = CpuPlatform() if native else References()
    return load_model(config, platform, torch.device("cpu"), tp, pp)


def stages_of(config: VllmConfig, size: int) -> list[Model]:
    return [loaded(config, Group(stage, size)) for stage in range(size)]


def computed(stages: Sequence[Model]) -> list[Tensor]:
    """Hidden states and logits of every step, after the last stage."""
    runs = [Harness(model, len(STEPS[0])) for model in stages]
    generator = torch.Generator().manual_seed(3)
    found = []
    for counts in STEPS:
        for row, count in enumerate(counts):
            tokens = torch.randint(3, 2000, (count,), generator=generator).tolist()
            for run in runs:
                run.add(row, tokens)
        hidden = None
        for run in runs:
            hidden = run.step(counts, hidden)
        assert hidden is not None
        found += [hidden, stages[-1].logits(hidden)]
    return found


def assert_equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        assert not one.isnan().any()
        assert torch.equal(one, two), (one - two).abs().max().item()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("arch", "model_impl"), CASES)
def test_stages_compute_what_the_whole_model_does(arch, model_impl, dtype, checkpoint):
    config = config_for(checkpoint(arch), dtype=dtype, model_impl=model_impl)
    expected = computed([loaded(config)])
    for size in (2, 3):
        assert_equal(computed(stages_of(config, size)), expected)


@pytest.mark.skipif(not isas(), reason="the kernels were not built")
@pytest.mark.parametrize("arch", ["qwen3", *sorted(FOREIGN)])
def test_graphs_of_a_stage_compute_what_it_does(arch, checkpoint):
    for model in stages_of(config_for(checkpoint(arch)), 3):
        model.backends = [next(iter(model.attention_layers().values())).backend]
        graphs, run = CpuGraphRunner(), Harness(model, 1)
        run.add(0, range(5, 20))
        generator = torch.Generator().manual_seed(1)
        for step in range(5):
            hidden = None if model.stage.is_first else torch.randn(1, 64, generator=generator)
            key = ShapeKey(Phase.DECODE, rows=1, query_len=1, kv_blocks=1)
            run.model = partial(graphs.run, key, model)
            given = run.step((1,), hidden).clone()
            run.computed[0] -= 1
            run.model = model
            assert torch.equal(given, run.step((1,), hidden)), step
        assert graphs._graphs


@pytest.mark.parametrize(
    ("arch", "model_impl"), [("gemma2", "auto"), ("deepseek_v3", "auto"), ("olmo2", "auto")]
)
def test_ranks_may_share_the_layers_of_a_stage(arch, model_impl, checkpoint):
    config = config_for(checkpoint(arch), model_impl=model_impl)

    def run(tp: InThread) -> None:
        whole = computed([loaded(config, SINGLE, tp, native=False)])
        stages = [loaded(config, Group(stage, 2), tp, native=False) for stage in range(2)]
        assert_equal(computed(stages), whole)

    on_ranks(2, run)


def test_layers_are_spread_as_the_variable_says(checkpoint, monkeypatch):
    monkeypatch.setenv(PARTITION, "1, 3")
    for model_impl in ("vllm", "transformers"):
        config = config_for(checkpoint("gemma2"), model_impl=model_impl)
        stages = stages_of(config, 2)
        assert [len(stage.attention_layers()) for stage in stages] == [1, 3]
        assert_equal(computed(stages), computed([loaded(config)]))


@pytest.mark.parametrize(("arch", "model_impl"), [("deepseek_v3", "auto"), *CASES[-7:]])
def test_stages_name_caches_as_the_whole_model_does(arch, model_impl, checkpoint):
    config = config_for(checkpoint(arch), model_impl=model_impl)
    named = [[*stage.attention_layers()] for stage in stages_of(config, 3)]
    assert all(named)
    assert [*itertools.chain(*named)] == [*loaded(config).attention_layers()]


@pytest.mark.parametrize("model_impl", ["vllm", "transformers"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_stage_has_memory_for_its_own_weights_alone(is_tied, model_impl, tmp_path):
    path = random_checkpoint.make("llama", tmp_path / "llama", tie_word_embeddings=is_tied)
    config = config_for(path, model_impl=model_impl)
    whole = loaded(config, native=False)
    sizes = [count(loaded(config, Group(stage, 3), native=False)) for stage in range(3)]
    rows, norm = config.model.vocab_size * 64, 64
    layer = sizes[1]
    assert sizes == [layer + rows, layer, layer + rows + norm]
    assert count(whole) == 3 * layer + norm + rows * (1 if is_tied else 2)


def count(model: Model) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("model_impl", ["vllm", "transformers"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_heads_that_are_tied_and_such_that_are_not(is_tied, model_impl, tmp_path):
    path = random_checkpoint.make("llama", tmp_path / "llama", tie_word_embeddings=is_tied)
    config = config_for(path, model_impl=model_impl)
    assert_equal(computed(stages_of(config, 2)), computed([loaded(config)]))


@pytest.mark.parametrize("model_impl", ["vllm", "transformers"])
def test_a_head_that_the_config_ties_wrongly_is_loaded(model_impl, tmp_path):
    path = random_checkpoint.make("llama", tmp_path / "llama", tie_word_embeddings=True)
    tensors = load_file(path / FILE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, path / FILE, metadata={"format": "pt"})
    config = config_for(path, model_impl=model_impl)
    assert_equal(computed(stages_of(config, 2)), computed([loaded(config)]))


@pytest.mark.parametrize("model_impl", ["vllm", "transformers"])
def test_random_weights_do_not_depend_on_the_number_of_stages(model_impl, checkpoint):
    config = config_for(checkpoint("gemma2"), model_impl=model_impl, load_format="dummy")
    assert_equal(computed(stages_of(config, 2)), computed([loaded(config)]))


@pytest.mark.parametrize(
    "name", ["model.layers.0.extra", "model.layers.3.mlp.up_proj.weight", "model.extra.weight"]
)
@pytest.mark.parametrize("model_impl", ["vllm", "transformers"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_every_stage_refuses_tensors_that_none_has(name, model_impl, stage, checkpoint, tmp_path):
    path = Path(shutil.copytree(checkpoint("llama"), tmp_path / "copied"))
    tensors = load_file(path / FILE)
    tensors[name] = torch.ones(128, 64)
    save_file(tensors, path / FILE, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=f"no place for {name}"):
        loaded(config_for(path, model_impl=model_impl), Group(stage, 3))


@pytest.mark.parametrize("model_impl", ["vllm", "transformers"])
def test_only_the_stage_that_needs_a_tensor_misses_it(model_impl, checkpoint, tmp_path):
    path = Path(shutil.copytree(checkpoint("llama"), tmp_path / "copied"))
    tensors = load_file(path / FILE)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, path / FILE, metadata={"format": "pt"})
    config = config_for(path, model_impl=model_impl)
    for stage in (0, 2):
        loaded(config, Group(stage, 3))
    with pytest.raises(LoadError, match=r"no tensor for .*layers\.1\.mlp\.down"):
        loaded(config, Group(1, 3))


@pytest.mark.parametrize(
    ("arch", "model_impl"),
    [
        ("llama", "vllm"),
        ("gemma2", "vllm"),
        ("mixtral", "transformers"),
        ("gemma2", "transformers"),
    ],
)
def test_a_stage_loads_its_weights_again(arch, model_impl, checkpoint, tmp_path):
    second = random_checkpoint.make(arch, tmp_path / "second", seed=2)
    config = config_for(checkpoint(arch), model_impl=model_impl)
    stages = stages_of(config, 2)
    for stage in stages:
        reload_weights(stage, config, second)
    fresh = [loaded(config_for(second, model_impl=model_impl))]
    assert_equal(computed(stages), computed(fresh))


@pytest.mark.parametrize("model_impl", ["vllm", "transformers"])
def test_more_stages_than_layers_are_refused(model_impl, checkpoint):
    config = config_for(checkpoint("llama"), model_impl=model_impl)
    with pytest.raises(ConfigError, match=r"size 4: the model has 3 layers.* Use at most 3\.$"):
        loaded(config, Group(0, 4))


def test_an_implementation_without_stages_is_refused(tmp_path):
    config = config_for(cacheless.make(tmp_path / "cacheless"), max_model_len=64)
    loaded(config)
    with pytest.raises(ConfigError, match=r"size 2: Cacheless computes all layers of Cacheless"):
        loaded(config, Group(0, 2))


PLAN = copy.deepcopy(LlamaConfig.base_model_pp_plan)
REMEDY = r".*Use --pipeline-parallel-size 1; --tensor-parallel-size "


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (None, "no plan"),
        ({**PLAN, "wpe": (["positions"], ["inputs_embeds"])}, "no module wpe"),
        ({"norm": (["hidden_states"], ["hidden_states"])}, "no stack of 3 layers"),
        (
            {**PLAN, "layers": (["hidden_states", "memory"], ["hidden_states"])},
            "layers that take hidden_states, memory and give hidden_states",
        ),
        (
            {**PLAN, "layers": (["hidden_states"], ["hidden_states", "memory"])},
            "layers that take hidden_states and give hidden_states, memory",
        ),
    ],
)
def test_plans_that_cannot_be_followed_are_refused(plan, reason, checkpoint, monkeypatch):
    monkeypatch.setattr(LlamaConfig, "base_model_pp_plan", plan)
    config = config_for(checkpoint("llama"), model_impl="transformers")
    loaded(config)
    for stage in range(2):
        with pytest.raises(ConfigError, match=rf"run LlamaFor.*\({reason}\)\. {REMEDY}"):
            loaded(config, Group(stage, 2))


def test_layers_that_are_given_more_than_their_plan_says_are_refused(checkpoint, monkeypatch):
    config = config_for(checkpoint("llama"), model_impl="transformers")
    plain = LlamaDecoderLayer.forward

    class Sharing(LlamaModel):
        def forward(self, *args, **options):
            return super().forward(*args, shared_states={}, **options)

    def swallow(self, hidden_states, shared_states=None, **options):
        return plain(self, hidden_states, **options)

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaModel", Sharing)
    monkeypatch.setattr(LlamaDecoderLayer, "forward", swallow)
    loaded(config)
    for stage in range(2):
        with pytest.raises(ConfigError, match=rf"\(layers that take shared_states\)\. {REMEDY}"):
            loaded(config, Group(stage, 2))


def test_layers_that_give_more_than_their_plan_says_are_refused(checkpoint, monkeypatch):
    config = config_for(checkpoint("llama"), model_impl="transformers")
    plain = LlamaDecoderLayer.forward
    monkeypatch.setattr(
        LlamaDecoderLayer, "forward", lambda *args, **options: (plain(*args, **options), None)
    )
    with pytest.raises(ConfigError, match=rf"\(layers that give other things .*\)\. {REMEDY}"):
        loaded(config, Group(0, 2))
