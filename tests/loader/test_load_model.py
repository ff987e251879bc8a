import gc
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from vllm import loader
from vllm.errors import ConfigError, LoadError
from vllm.loader import ties
from vllm.platforms.base import Platform
from vllm.platforms.cpu import CpuPlatform

FILE = "model.safetensors"


def rewrite(path, change) -> None:
    tensors = load_file(path / FILE)
    change(tensors)
    save_file(tensors, path / FILE)


def shard(path) -> None:
    """Split the one file into two and an index."""
    tensors = load_file(path / FILE)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, mine in parts.items():
        save_file({name: tensors[name] for name in mine}, path / file)
    weight_map = {name: file for file, mine in parts.items() for name in mine}
    (path / f"{FILE}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (path / FILE).unlink()


def edit_config(path, **fields) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **fields}))


def assert_same(left, right) -> None:
    ours, theirs = dict(left.named_parameters()), dict(right.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_missing_tensor_is_named_as_the_parameter_it_leaves_empty(copied, load):
    rewrite(copied, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"))
    with pytest.raises(LoadError, match=r"layers\.1\.attention\.qkv\.weight \(part k\)"):
        load(copied)


def test_a_tensor_without_a_place_is_named(copied, load):
    rewrite(copied, lambda tensors: tensors.update({"model.layers.0.extra": torch.ones(1)}))
    with pytest.raises(LoadError, match=r"no place for model\.layers\.0\.extra"):
        load(copied)


def test_a_long_list_of_names_is_cut(copied, load):
    rewrite(copied, lambda t: t.update({f"extra.{i}": torch.ones(1) for i in range(50)}))
    with pytest.raises(LoadError, match="and 44 more"):
        load(copied)


def test_tensors_that_follow_from_the_config_are_passed_over(copied, load):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(copied, lambda tensors: tensors.update({name: torch.ones(8)}))
    load(copied)


def test_a_wrong_shape_is_shown_with_the_right_one(copied, load):
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(copied, lambda tensors: tensors.update({name: torch.ones(3, 64)}))
    with pytest.raises(LoadError, match=r"up_proj.weight' has shape \[3, 64\].* \[128, 64\]"):
        load(copied)


def test_quantized_values_are_not_taken_for_weights(copied, load):
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(copied, lambda tensors: tensors.update({name: torch.ones(128, 64, dtype=torch.int8)}))
    with pytest.raises(LoadError, match="quantized weights need a quantization_config"):
        load(copied)


def test_a_quantized_checkpoint_is_refused_before_anything_is_read(copied, load):
    edit_config(copied, quantization_config={"quant_method": "fp8"})
    with pytest.raises((ConfigError, LoadError), match="fp8"):
        load(copied)


@pytest.mark.parametrize("kept", [0, 5, 1000])
def test_a_truncated_file_is_named_with_the_remedy(copied, load, kept):
    data = (copied / FILE).read_bytes()
    (copied / FILE).write_bytes(data[:kept])
    with pytest.raises(LoadError, match=r"model\.safetensors.*download or copy it again"):
        load(copied)


def test_shards_listed_in_an_index_load_as_one_file_does(copied, llama, load):
    shard(copied)
    assert_same(load(copied), load(llama))


def test_a_missing_shard_is_named(copied, load):
    shard(copied)
    (copied / "b.safetensors").unlink()
    with pytest.raises(LoadError, match=r"not there: b\.safetensors"):
        load(copied)


def test_an_unreadable_index_is_named(copied, load):
    shard(copied)
    (copied / f"{FILE}.index.json").write_text("{")
    with pytest.raises(LoadError, match=r"index\.json"):
        load(copied)


def test_a_directory_without_weights_says_what_it_looked_for(copied, load):
    (copied / FILE).unlink()
    with pytest.raises(LoadError, match=r"\.safetensors.*--load-format dummy"):
        load(copied)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_load_as_safetensors_do(copied, llama, load, zipped):
    state = load_file(copied / FILE)
    (copied / FILE).unlink()
    torch.save(state, copied / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_same(load(copied), load(llama))
    assert_same(load(copied, load_format="pt"), load(llama))


def test_a_broken_pickle_is_named(copied, load):
    torch.save(load_file(copied / FILE), copied / "pytorch_model.bin")
    data = (copied / "pytorch_model.bin").read_bytes()
    (copied / "pytorch_model.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(LoadError, match=r"pytorch_model\.bin"):
        load(copied, load_format="pt")


def test_a_pickle_that_would_run_code_is_refused(copied, load):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"x": Evil()}, copied / "pytorch_model.bin")
    with pytest.raises(LoadError, match="convert the checkpoint to safetensors"):
        load(copied, load_format="pt")


def test_safetensors_win_over_pickles_and_over_a_second_layout(copied, llama, load):
    torch.save({"nonsense": torch.ones(1)}, copied / "pytorch_model.bin")
    save_file({"nonsense": torch.ones(1)}, copied / "consolidated.safetensors")
    assert_same(load(copied), load(llama))


def test_a_tensor_in_two_files_is_that_of_the_file_the_index_names(copied, llama, load):
    shard(copied)
    index = json.loads((copied / f"{FILE}.index.json").read_text())["weight_map"]
    name = next(name for name, file in index.items() if file == "b.safetensors")
    other = next(name for name, file in index.items() if file == "a.safetensors")
    for file, extra in (("a", name), ("b", other)):
        tensors = load_file(copied / f"{file}.safetensors")
        tensors[extra] = torch.zeros_like(load_file(llama / FILE)[extra])
        save_file(tensors, copied / f"{file}.safetensors")
    assert_same(load(copied), load(llama))


def test_the_index_of_another_format_is_not_read(copied, llama, load):
    torch.save(load_file(copied / FILE), copied / "pytorch_model.bin")
    (copied / f"{FILE}.index.json").write_text("{ broken")
    assert_same(load(copied, load_format="pt"), load(llama))


def test_dummy_weights_need_no_files_and_follow_the_seed(copied, load):
    (copied / FILE).unlink()
    first = load(copied, load_format="dummy", seed=1)
    assert_same(first, load(copied, load_format="dummy", seed=1))
    other = load(copied, load_format="dummy", seed=2)
    assert not torch.equal(first.embed.weight, other.embed.weight)
    assert all(p.isfinite().all() for p in first.parameters())


def test_weights_are_converted_to_the_dtype_of_the_model(llama, load):
    wide, narrow = load(llama), load(llama, dtype="bfloat16")
    assert all(p.dtype == torch.bfloat16 for p in narrow.parameters())
    assert torch.equal(narrow.embed.weight, wide.embed.weight.bfloat16())


def test_values_that_the_dtype_cannot_hold_are_no_weights(copied, load):
    name = "model.layers.0.mlp.up_proj.weight"
    for worst in (7e4, -1e6):
        big = torch.full((128, 64), worst, dtype=torch.bfloat16)
        rewrite(copied, lambda tensors, big=big: tensors.update({name: big}))
        load(copied, dtype="bfloat16")
        with pytest.raises(LoadError, match=r"up_proj.*bfloat16; float16 ends at 65504.*--dtype"):
            load(copied, dtype="float16")
    rewrite(copied, lambda tensors: tensors.update({name: torch.full((128, 64), 65504.0)}))
    load(copied, dtype="float16")


def tie(path, head="lm_head.weight", embedding="model.embed_tokens.weight") -> None:
    edit_config(path, tie_word_embeddings=True)
    rewrite(path, lambda tensors: tensors.update({head: tensors[embedding].clone()}))


def num_values(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(params=["packed", "plain", "transformers"])
def load_as(request, load, monkeypatch):
    """Weights as the CPU packs them, as other platforms such as HPU hold them, and the fallback."""
    if request.param == "plain":
        monkeypatch.setattr(CpuPlatform, "weight_methods", Platform.weight_methods)
    impl = "transformers" if request.param == "transformers" else "vllm"
    return lambda path: load(path, model_impl=impl)


def test_a_tied_head_uses_the_embedding_and_a_stored_copy_costs_nothing(copied, load_as, log_lines):
    tie(copied)
    model = load_as(copied)
    rewrite(copied, lambda tensors: tensors.pop("lm_head.weight"))
    without = load_as(copied)
    assert_same(without, model)
    hidden = torch.randn(2, 64)
    table = load_file(copied / FILE)["model.embed_tokens.weight"]
    torch.testing.assert_close(model.logits(hidden), hidden @ table.T)
    assert "ties" not in log_lines.text


@pytest.mark.parametrize("files", ["one", "shards", "pickle"])
def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_used(
    copied, load_as, log_lines, files
):
    edit_config(copied, tie_word_embeddings=True)
    head = load_file(copied / FILE)["lm_head.weight"]
    if files == "shards":
        shard(copied)
    elif files == "pickle":
        torch.save(load_file(copied / FILE), copied / "pytorch_model.bin")
        (copied / FILE).unlink()

    model = load_as(copied)

    hidden = torch.randn(2, 64)
    torch.testing.assert_close(model.logits(hidden), hidden @ head.T)
    assert log_lines.text.count("the checkpoint's lm_head.weight is used") == 1
    edit_config(copied, tie_word_embeddings=False)
    assert_same(load_as(copied), model)


def test_a_model_that_is_built_again_is_not_held_beside_the_next(copied, load, monkeypatch):
    edit_config(copied, tie_word_embeddings=True)
    build, built = loader._declared, []

    def watched(*arguments):
        gc.collect()
        alive = [one for one in built if one() is not None]
        assert not alive, "a device would have to hold both"
        model = build(*arguments)
        built.append(weakref.ref(model))
        return model

    monkeypatch.setattr(loader, "_declared", watched)
    load(copied)
    assert len(built) == 2


def test_a_head_may_be_a_copy_in_a_wider_type(copied, load, log_lines):
    tie(copied)
    rewrite(
        copied,
        lambda t: t.update(
            {"model.embed_tokens.weight": t["model.embed_tokens.weight"].bfloat16()}
        ),
    )
    model = load(copied, dtype="bfloat16")
    edit_config(copied, tie_word_embeddings=False)
    assert num_values(load(copied, dtype="bfloat16")) > num_values(model)
    assert "ties" not in log_lines.text


def test_the_data_of_a_checkpoint_without_a_head_is_not_compared(copied, load, monkeypatch):
    tie(copied)
    rewrite(copied, lambda tensors: tensors.pop("lm_head.weight"))

    def never(*_):
        raise AssertionError("nothing to compare")

    monkeypatch.setattr(ties, "_are_equal", never)
    load(copied)


def test_progress_is_shown_where_wanted(llama, load, capfd):
    load(llama, use_tqdm_on_load=True)
    assert "Loading weights" in capfd.readouterr().err
    load(llama, use_tqdm_on_load=False)
    assert "Loading weights" not in capfd.readouterr().err


def test_a_loaded_model_takes_no_gradients_and_is_in_evaluation_mode(llama, load):
    model = load(llama)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
