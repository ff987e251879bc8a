"""The repository keeps its own mechanical rules (docs/architecture.md)."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping

import pytest

from tests.architecture import rules
from vllm import envs
from vllm.config import unavailable_variables
from vllm.config.legacy import LEGACY
from vllm.config.option import settings_of
from vllm.config.unavailable import UNAVAILABLE
from vllm.config.vllm import GROUPS, all_settings

CODE = rules.sources("vllm")
ALL_CODE = [*CODE, *rules.sources("tests", "tools", "benchmarks", "examples", "csrc")]
# Path, or path:function -> why it may be longer.
LONG_FILES: Mapping[str, str] = {}
LONG_FUNCTIONS: Mapping[str, str] = {}
DECLARED = [variable.name for variable in envs.VARIABLES]
KNOWN = [*DECLARED, *unavailable_variables.NAMES]
# What the variables of an axis have in common stands for all of them.
AXES = {f"{name.partition('_BUCKET_')[0]}_BUCKET" for name in DECLARED if "_BUCKET_" in name}
PUBLIC_MODULES = (
    "vllm.config",
    "vllm.engine.arg_utils",
    "vllm.engine.async_llm_engine",
    "vllm.engine.llm_engine",
    "vllm.entrypoints.chat_utils",
    "vllm.entrypoints.llm",
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.openai.protocol",
    "vllm.envs",
    "vllm.inputs",
    "vllm.outputs",
    "vllm.platforms",
    "vllm.sampling_params",
    "vllm.transformers_utils.tokenizer",
    "vllm.utils",
)


def test_no_file_is_too_long_to_read() -> None:
    assert [p for s in ALL_CODE for p in rules.too_long_files(s, LONG_FILES)] == []


def test_no_function_is_too_long_to_read() -> None:
    assert [p for s in ALL_CODE for p in rules.too_long_functions(s, LONG_FUNCTIONS)] == []


def test_no_test_is_judged_by_the_clock() -> None:
    assert [p for s in rules.sources("tests") for p in rules.hasty_tests(s)] == []


def test_exceptions_to_lengths_still_exist_and_have_a_reason() -> None:
    for name, reason in {**LONG_FILES, **LONG_FUNCTIONS}.items():
        assert (rules.ROOT / name.partition(":")[0]).exists(), name
        assert reason


def test_imports_go_one_way() -> None:
    assert [p for s in CODE for p in rules.wrong_imports(s)] == []


def test_no_module_imports_itself_through_others() -> None:
    assert list(rules.circles(CODE)) == []


def test_shared_code_does_not_know_devices_by_name() -> None:
    assert [p for s in CODE for p in rules.device_words(s)] == []


def test_only_envs_reads_the_environment() -> None:
    assert [p for s in CODE for p in rules.environment_reads(s)] == []


def test_documentation_mentions_only_variables_that_are_read() -> None:
    pages = [*rules.ROOT.glob("*.md"), *(rules.ROOT / "docs").rglob("*.md")]
    found = [
        problem
        for page in pages
        if page.name != "compatibility.md"  # lists what is absent too, and has its own test
        for problem in rules.undeclared_variables(page.name, page.read_text(), [*KNOWN, *AXES])
    ]
    assert found == []


def test_every_variable_is_documented() -> None:
    text = (rules.ROOT / "docs" / "configuration.md").read_text()
    assert list(rules.undocumented_variables(text, KNOWN)) == []


def test_every_variable_with_effect_is_read() -> None:
    declarations = ("vllm/envs.py", "vllm/hpu_variables.py")
    outside = "\n".join(s.text for s in CODE if s.path not in declarations)
    unread = [v.name for v in envs.VARIABLES if v.has_effect and v.name not in outside]
    assert [name for name in unread if not is_read_by_axis(name, outside)] == []


def is_read_by_axis(name: str, code: str) -> bool:
    """Names of the axes of buckets are put together from their parts."""
    axis, is_bucket, part = name.removeprefix("VLLM_").partition("_BUCKET_")
    return bool(is_bucket) and f'"{axis}"' in code and f'"{part}"' in code


@pytest.mark.parametrize("name", GROUPS)
def test_every_config_field_is_read_by_the_engine(name: str) -> None:
    folded = {setting.attribute for setting in settings_of(GROUPS[name]) if setting.folded}
    fields = {field.name for field in dataclasses.fields(GROUPS[name])} - folded
    outside = [s for s in CODE if not is_of_config(s)]
    assert list(rules.unread_fields(name, fields, outside)) == []


def is_of_config(source: rules.Source) -> bool:
    """Whether it declares settings, or makes a config of them."""
    return source.path.startswith("vllm/config/") or source.path == "vllm/engine/resolve.py"


def test_folded_fields_are_used_by_resolve() -> None:
    inside = "\n".join(s.text for s in CODE if is_of_config(s))
    for setting in all_settings():
        if setting.folded:
            assert inside.count(setting.name) > 1, setting.name


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_every_flag_has_a_sentence_of_help(group: type) -> None:
    for setting in settings_of(group):
        assert setting.help.endswith("."), setting.flag


def test_every_old_or_coming_flag_says_what_became_of_it() -> None:
    assert all(row.help.endswith(".") for row in LEGACY)
    assert all(row.feature for row in UNAVAILABLE)


def test_no_statement_patches_probes_or_swallows() -> None:
    assert [p for s in CODE for p in rules.unsafe_statements(s)] == []


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_modules_that_users_import_exist(name: str) -> None:
    importlib.import_module(name)


def test_public_names_can_be_imported() -> None:
    import vllm

    for name in vllm.__all__:
        assert getattr(vllm, name) is not None, name
