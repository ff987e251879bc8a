"""8-bit weights per channel: read, kept, multiplied; refused where they cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.loader import running
from tests.loader.quantizing import FILE, encoded, packed, quantized, rounded
from tools.tiny_models import random_checkpoint
from vllm import LLM, SamplingParams
from vllm.errors import ConfigError, LoadError
from vllm.layers.quantization.compressed_tensors import ChannelFloat8, PackedChannelInt8
from vllm.layers.quantization.encoding import QuantizedPiece
from vllm.layers.shapes import EVERYTHING, Piece, Share
from vllm.layers.weights import Loadable

HERE = Path(__file__).parent
# Fused and stacked projections, biases, experts, routers in float32, latent rows.
ARCHITECTURES = ("llama", "qwen2", "gpt_bigcode", "mixtral", "qwen3_moe", "deepseek_v3")


def tokens_of(path: Path, **options) -> list[list[int]]:
    return running.tokens_of(running.engine(path, **options))


@pytest.mark.parametrize("name", ["ct-w8a16-channel", "ct-fp8-w8a16"])
def test_what_llm_compressor_wrote_gives_what_compressed_tensors_computes(name, tmp_path):
    path = Path(shutil.copytree(HERE / "checkpoints" / name, tmp_path / name))
    expected = load_file(path / "reference_logits.safetensors")
    (path / "reference_logits.safetensors").unlink()
    llm = LLM(
        str(path),
        dtype="bfloat16",
        max_model_len=64,
        num_gpu_blocks_override=16,
        skip_tokenizer_init=True,
        use_tqdm_on_load=False,
        logprobs_mode="raw_logits",
        max_logprobs=2048,
    )
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=2048, ignore_eos=True)
    prompt = {"prompt_token_ids": expected["input_ids"][0].tolist()}
    (output,) = llm.generate([prompt], params, use_tqdm=False)[0].outputs
    given = torch.tensor([output.logprobs[0][i].logprob for i in range(2048)])
    wanted = expected["logits_last"][0]
    assert given.argmax() == wanted.argmax()
    # Both round to bfloat16, in orders of their own.
    assert (given - wanted).abs().mean() < 0.02 * wanted.std()


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tokens_are_those_of_the_same_values_in_float32(arch, kind, tmp_path):
    path = random_checkpoint.make(arch, tmp_path / "plain")
    given = tokens_of(quantized(path, tmp_path / "quantized", kind))
    assert given == tokens_of(rounded(path, tmp_path / "rounded", kind))


def test_a_quantized_head_is_read_too(tmp_path):
    path = random_checkpoint.make("llama", tmp_path / "plain")
    given = tokens_of(quantized(path, tmp_path / "quantized", "int", ignore=()))
    assert given == tokens_of(rounded(path, tmp_path / "rounded", "int", ignore=()))


def test_weights_take_a_byte_each(tmp_path, load):
    path = random_checkpoint.make("mixtral", tmp_path / "plain")
    whole, small = load(path), load(quantized(path, tmp_path / "quantized", "int"))
    names = [name for name, p in small.named_parameters() if p.dtype == torch.int8]
    assert {name.rpartition(".")[2] for name in names} == {"weight", "w13", "w2"}
    sizes = [sum(p.nbytes for p in model.layers.parameters()) for model in (whole, small)]
    assert 3 * sizes[1] < sizes[0]


def staged_bytes(layer) -> int:
    return sum(tensor.nbytes for tensor in layer._staged.values())


@pytest.mark.parametrize("arch", ["llama", "mixtral"])
def test_no_more_than_one_layer_is_held_as_it_was_loaded(arch, tmp_path, load, monkeypatch):
    path = quantized(random_checkpoint.make(arch, tmp_path / "plain"), tmp_path / "q", "int")
    held, most = {}, []
    stage, unstage = Loadable.stage, Loadable.unstage

    def staged(layer, key, *arguments):
        made = stage(layer, key, *arguments)
        held[id(layer)] = staged_bytes(layer)
        most.append(sum(held.values()))
        return made

    def unstaged(layer, key):
        made = unstage(layer, key)
        held[id(layer)] = staged_bytes(layer)
        return made

    monkeypatch.setattr(Loadable, "stage", staged)
    monkeypatch.setattr(Loadable, "unstage", unstaged)
    model = load(path)
    sizes = [sum(p.nbytes for p in layer.parameters()) for layer in model.layers.values()]
    assert max(most) <= max(sizes)
    assert not any(held.values())


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_weights_may_be_quantized(kind, dtype, tmp_path):
    path = quantized(random_checkpoint.make("mixtral", tmp_path / "plain"), tmp_path / "q", kind)
    (path / FILE).unlink()
    given = tokens_of(path, load_format="dummy", dtype=dtype)
    assert given == tokens_of(path, load_format="dummy", dtype=dtype)
    assert len({token for tokens in given for token in tokens}) > 5


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_ranks_decode_their_shares(dim):
    weight = torch.randn(8, 16)
    for encoding, kind in ((PackedChannelInt8(), "int"), (ChannelFloat8(), "float")):
        values, scales = encoded(weight, kind)
        whole = QuantizedPiece(values, scales).dequantized(torch.float32)
        stored = {"weight_scale": scales, "weight_shape": torch.tensor(weight.shape)}
        if kind == "int":
            stored["weight_packed"] = packed(values)
        else:
            stored["weight"] = values
        for rank in range(2):
            length = weight.shape[dim] // 2
            share = EVERYTHING if dim < 0 else Share(dim, rank * length, length)
            piece = Piece((8, 16), 0, 8, share=share)
            loaded = {}
            for tensor in encoding.tensors(piece):
                value = tensor.share.of(stored[tensor.name])
                assert tuple(value.shape) == tensor.share.shape(tensor.shape)
                loaded[tensor.name] = value.contiguous()
            found = encoding.decode(loaded, piece).dequantized(torch.float32)
            assert torch.equal(found, share.of(whole))


def test_four_inputs_that_two_ranks_would_share_are_an_error():
    with pytest.raises(ConfigError, match=r"packed in fours.*--tensor-parallel-size"):
        PackedChannelInt8().tensors(Piece((8, 12), 0, 8, share=Share(1, 6, 6)))


def change(path: Path, edit) -> None:
    config = json.loads((path / "config.json").read_text())
    edit(config["quantization_config"])
    (path / "config.json").write_text(json.dumps(config))


def group(facts):
    return facts["config_groups"]["group_0"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda q: group(q)["weights"].update(num_bits=4), r"weights.num_bits 4"),
        (lambda q: group(q)["weights"].update(strategy="group"), r"weights.strategy 'group'"),
        (lambda q: group(q)["weights"].pop("strategy"), r"weights.strategy None"),
        (lambda q: group(q)["weights"].update(symmetric=False), r"weights.symmetric False"),
        (lambda q: group(q)["weights"].update(actorder="group"), r"weights.actorder 'group'"),
        (lambda q: group(q).update(input_activations={"num_bits": 8}), r"input_activations"),
        (lambda q: q.update(kv_cache_scheme={"num_bits": 8}), r"kv_cache_scheme"),
        (lambda q: q.update(format="marlin-24"), r"\(format, type\) \('marlin-24', 'int'\)"),
        (lambda q: q.update(quant_method="awq"), r"quant_method 'awq'.*compressed-tensors"),
    ],
)
def test_other_formats_are_refused_by_name(edit, message, tmp_path, load):
    path = quantized(random_checkpoint.make("llama", tmp_path / "plain"), tmp_path / "q", "int")
    change(path, edit)
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_parts_of_one_projection_need_one_encoding(tmp_path, load):
    path = quantized(random_checkpoint.make("llama", tmp_path / "plain"), tmp_path / "q", "int")
    change(path, lambda q: q["ignore"].append("re:.*q_proj$"))
    with pytest.raises(ConfigError, match=r"some parts of layers.0.attention.qkv and others not"):
        load(path)


@pytest.mark.parametrize("arch", ["mixtral", "deepseek_v3"])
def test_routers_may_be_quantized_or_not(arch, tmp_path, load):
    """Tools differ on whether they are linear layers, and `ignore` need not name them."""
    path = random_checkpoint.make(arch, tmp_path / "plain")
    routers = tuple(
        name.removesuffix(".weight")
        for name in load_file(path / FILE)
        if name.endswith(".gate.weight")
    )
    assert routers
    made = quantized(path, tmp_path / "q", "int", ignore=("lm_head", *routers))
    change(made, lambda q: q.update(ignore=["lm_head"]))
    given = tokens_of(made)
    assert given == tokens_of(rounded(path, tmp_path / "r", "int", ("lm_head", *routers)))


def test_an_exact_name_beats_a_pattern_which_beats_a_class(tmp_path, load):
    path = quantized(random_checkpoint.make("llama", tmp_path / "plain"), tmp_path / "q", "float")
    name = "model.layers.1.mlp.down_proj"
    encoding = PackedChannelInt8()
    tensors = load_file(path / FILE)
    weight = tensors.pop(f"{name}.weight").float() * tensors.pop(f"{name}.weight_scale")
    values, scale = encoded(weight, "int")
    tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_scale"] = packed(values), scale
    tensors[f"{name}.weight_shape"] = torch.tensor(weight.shape)
    save_file(tensors, path / FILE)

    def regroup(facts, *targets):
        ints = {"num_bits": 8, "type": "int", "strategy": "channel"}
        facts["config_groups"]["group_1"] = {
            "targets": list(targets),
            "weights": ints,
            "format": "pack-quantized",
        }

    for targets in ([name], [r"re:.*layers\.1\..*down_proj"]):
        change(path, lambda q, targets=targets: regroup(q, *targets))
        model = load(path)
        down = [layer.mlp.down.method.loading.encoding for layer in model.layers.values()]
        assert down[1] == encoding
        assert all(one == ChannelFloat8() for i, one in enumerate(down) if i != 1)


def test_groups_of_one_format_may_share_a_projection(tmp_path, load):
    path = quantized(random_checkpoint.make("llama", tmp_path / "plain"), tmp_path / "q", "int")
    change(
        path,
        lambda q: q["config_groups"].update(
            group_0={**group(q), "targets": ["Linear"]},
            group_1={**group(q), "targets": ["re:.*q_proj"]},
        ),
    )
    load(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda q: q.pop("config_groups"), r"config_groups None; an object"),
        (lambda q: group(q).pop("targets"), r"targets \[\]; known are 'Linear'"),
        (lambda q: group(q).update(targets=["Conv2d"]), r"targets \['Conv2d'\]"),
    ],
)
def test_configs_that_say_nothing_are_refused(edit, message, tmp_path, load):
    path = quantized(random_checkpoint.make("llama", tmp_path / "plain"), tmp_path / "q", "int")
    change(path, edit)
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_dense_is_no_sparsity(tmp_path, load):
    path = quantized(random_checkpoint.make("llama", tmp_path / "plain"), tmp_path / "q", "int")
    change(path, lambda q: q.update(sparsity_config={"format": "dense"}))
    load(path)


def test_a_scale_that_is_missing_is_named(tmp_path, load):
    path = quantized(random_checkpoint.make("llama", tmp_path / "plain"), tmp_path / "q", "int")
    tensors = load_file(path / FILE)
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]
    save_file(tensors, path / FILE)
    with pytest.raises(LoadError, match=r"layers.1.mlp.gate_up.weight_scale \(part up\)"):
        load(path)


def test_plain_values_in_place_of_quantized_ones_are_an_error(tmp_path, load):
    path = quantized(random_checkpoint.make("llama", tmp_path / "plain"), tmp_path / "q", "float")
    tensors = load_file(path / FILE)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].float()
    save_file(tensors, path / FILE)
    with pytest.raises(LoadError, match=r"is torch.float32.*it is torch.float8_e4m3fn"):
        load(path)


def test_transformers_models_are_not_quantized(tmp_path, load):
    path = quantized(random_checkpoint.make("llama", tmp_path / "plain"), tmp_path / "q", "int")
    with pytest.raises(ConfigError, match="its weights are quantized"):
        load(path, model_impl="transformers")
