"""What a regular expression lets come matches it, in a text and in JSON, whatever compiles it.

Python's re tells. Of what has a meaning in one dialect alone, nothing that another excludes comes.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tests.structured_output.conftest import can_be_whole, ready
from tests.structured_output.drawing import random_text
from vllm.sampling_params import StructuredOutputsParams
from vllm.structured_output.compiler import GrammarCompiler
from vllm.structured_output.grammar import GrammarError
from vllm.structured_output.notation import XGRAMMAR, text_for
from vllm.structured_output.pattern import NotPlain, found_in, read, texts, whole

BACKENDS = ("xgrammar", "guidance")
# Each a pattern and a text it matches.
PATTERNS = [
    ('^"x"$', '"x"'),
    (r"^C:\\e$", r"C:\e"),
    (r"^a\nb$", "a\nb"),
    (r"^\t$", "\t"),
    ("^\t\n$", "\t\n"),
    (r"^[\x00-\x1f]{2}$", "\x01\x1f"),
    (r"^\x00$", "\0"),
    (r'^(["\\/]|b)+$', '"\\/b'),
    (r"^[^a]{1,3}$", '"\\b'),
    (r'^[^"]{2}$', "a\\"),
    (r"^[^\\]{2}$", 'a"'),
    (r"^[^\n]$", "a"),
    (r"^.{3}$", 'a"b'),
    (r"^\S\s\S$", "a b"),
    (r"^\D\W$", "a-"),
    (r"^\d\w$", "1_"),
    (r"^[\w.-]+@[a-z]+$", "a.b@c"),
    ("^[é-ü]😀$", "ü😀"),
    (r"^\u00e9\x41$", "éA"),
    (r"^(?:a|b)(?P<n>c)?(?<m>d)$", "acd"),
    ("^a|b$", "ab"),
    ("(^a|b)$", "b"),
    ("^(a$|b$)", "a"),
    ("^[^[]{x}[|&~-]$", "y{x}-"),
    (r"^[\]\[^]\.\$\/$", "^.$/"),
    ("^(a{2}){0,2}b*?$", "aaaabb"),
    ("^(|a)$", ""),
    (r"^\x0bb\x0bz[\x01b-c][\x7fz][éa]$", "\x0bb\x0bz\x01\x7féa"[:-1]),
    ("^éa日f$", "éa日f"),
    ("(^a|b)c", "ac"),
    ("^[\\s\\S]\u2028\x7f$", "\n\u2028\x7f"),
]
Holds = Callable[[Any], bool]


def _schemas(pattern: str) -> dict[str, tuple[dict[str, Any], Holds, Callable[[str], Any]]]:
    """Places of a pattern in a schema, whether a value meets it, and how a text becomes one."""
    text = {"type": "string", "pattern": pattern}

    def meets(value: str) -> bool:
        return re.search(_python(pattern), value, re.ASCII) is not None

    def names_meet(value: dict[str, Any]) -> bool:
        return all(map(meets, value))

    member = {"type": "object", "properties": {"x": text}, "required": ["x"]}
    named = {"type": "object", "patternProperties": {pattern: {"const": 1}}}
    return {
        "alone": (text, meets, lambda t: t),
        "items": (
            {"type": "array", "items": text, "minItems": 1, "maxItems": 2},
            lambda value: all(map(meets, value)),
            lambda t: [t],
        ),
        "anyOf": (
            {"anyOf": [{"const": 5}, text]},
            lambda value: value == 5 or meets(value),
            lambda t: t,
        ),
        "member": (
            {**member, "additionalProperties": False},
            lambda value: meets(value["x"]),
            lambda t: {"x": t},
        ),
        "patternProperties": (
            {**named, "additionalProperties": False},
            names_meet,
            lambda t: {t: 1},
        ),
        "propertyNames": (
            {"type": "object", "propertyNames": {"pattern": pattern}},
            names_meet,
            lambda t: {t: 1},
        ),
    }


def _python(pattern: str) -> str:
    return pattern.replace("(?<m>", "(?P<m>")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("pattern", "text"), PATTERNS, ids=ascii)
def test_a_text_that_may_come_matches(
    pattern: str,
    text: str,
    backend: str,
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    expression = f"(?:{_python(pattern)})"
    full = re.fullmatch(expression, text, re.ASCII) is not None
    params = StructuredOutputsParams(regex=pattern, backend=backend)
    assert can_be_whole(text, ready(compiler.submit(params)), tokenizer) is full
    rng = random.Random(3)
    for _ in range(4):
        drawn = random_text(ready(compiler.submit(params)), tokenizer, rng, most=60)
        assert drawn is None or re.fullmatch(expression, drawn, re.ASCII), drawn


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("pattern", "text"), PATTERNS, ids=ascii)
def test_a_string_that_may_come_is_json_and_matches(
    pattern: str,
    text: str,
    backend: str,
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rng = random.Random(4)
    for place, (schema, holds, value_of) in _schemas(pattern).items():
        params = StructuredOutputsParams(json=schema, backend=backend, disable_any_whitespace=True)
        try:
            grammar = ready(compiler.submit(params))
        except GrammarError as error:
            known = "characters that JSON escapes" if backend == "xgrammar" else "propertyNames"
            assert known in str(error)
            continue
        whole_value = json.dumps(value_of(text), ensure_ascii=False, separators=(",", ":"))
        if backend == "guidance":
            assert can_be_whole(whole_value.replace("\x7f", "\\u007f"), grammar, tokenizer) or (
                can_be_whole(whole_value, ready(compiler.submit(params)), tokenizer)
            ), place
        for _ in range(2):
            drawn = random_text(ready(compiler.submit(params)), tokenizer, rng, most=60)
            assert drawn is None or holds(json.loads(drawn)), (place, drawn)


@pytest.mark.parametrize("pattern", ['^"x"$', r"^C:\\e$", r"^\n\t$"])
def test_strings_with_escapes_are_left_to_what_writes_them(
    pattern: str, compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerBase
) -> None:
    for place, (schema, holds, _) in _schemas(pattern).items():
        if place == "propertyNames":  # guidance has none
            continue
        params = StructuredOutputsParams(json=schema, disable_any_whitespace=True)
        rng = random.Random(6)
        drawn = [random_text(ready(compiler.submit(params)), tokenizer, rng) for _ in range(3)]
        assert any(drawn) and all(text is None or holds(json.loads(text)) for text in drawn)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a$b", "anchors that are not at an end"),
        ("a^b", "anchors that are not at an end"),
        ("(a$)+b", "anchors that are not at an end"),
        ("(^a)*", "anchors that are not at an end"),
        (r"a\Zb", "anchors that are not at an end"),
        ("^*a", "repeated anchors"),
        ("a*+a", "possessive"),
        ("(?i)a*+a", "possessive"),
        ("a{2}{3}", "repeated repetitions"),
        ("a{,3}", "without a lower bound"),
        ("*a", "repetitions of nothing"),
        ("[]a]", "begin with ]"),
        ("[b-a]", "ranges that are none"),
        (r"[a-\d]", "ranges that are none"),
        (r"[^\s\S]", "without characters"),
        (r"(a)\1", "1"),
        (r"\012", "octal"),
        (r"\q", "q"),
        (r"\ud83d", "surrogates"),
        (r"\u{110000}", "there are not"),
        (r"\x4", "cut"),
        ("(a", "not closed"),
        ("a)", "not opened"),
        ("a{3,2}", "wrong order"),
        (r"(?=a)b", "lookaround"),
        (r"\bfoo", "boundar"),
    ],
)
def test_what_no_backend_holds_is_refused(
    pattern: str, reason: str, compiler: GrammarCompiler
) -> None:
    for params in ({"regex": pattern}, {"json": {"type": "string", "pattern": pattern}}):
        with pytest.raises(GrammarError, match=re.escape(reason)):
            ready(compiler.submit(StructuredOutputsParams(**params)))


@pytest.mark.parametrize(
    ("pattern", "text", "other"),
    [(r"(?i)ab", "aB", "ac"), (r"\p{Lu}x", "Éx", "éx"), ("[[:alpha:]]b", "ab", ":b")],
)
def test_what_guidance_reads_alike_is_left_to_it(
    pattern: str,
    text: str,
    other: str,
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    params = StructuredOutputsParams(regex=pattern)
    assert can_be_whole(text, ready(compiler.submit(params)), tokenizer)
    assert not can_be_whole(other, ready(compiler.submit(params)), tokenizer)


SAMPLES = ["", "\n", "\r", "a", "b", "ab", "a\n", "\u2028", "é", "_", "-", " ", "1", '"', "]", "^"]


@pytest.mark.parametrize("pattern", [p for p, _ in PATTERNS], ids=ascii)
def test_what_is_written_means_what_was_read(pattern: str) -> None:
    written = re.compile(text_for(XGRAMMAR, pattern), re.DOTALL)
    for text in [*SAMPLES, *(t for _, t in PATTERNS)]:
        asked = re.fullmatch(f"(?:{_python(pattern)})", text, re.ASCII)
        if "." in pattern and any(char in text for char in "\r\u2028\u2029"):
            assert asked or not written.fullmatch(text)
        else:
            assert bool(written.fullmatch(text)) is bool(asked), text


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("^a$", {"a"}),
        ("^(a|b)c?$", {"a", "b", "ac", "bc"}),
        ("^[ab]{1,2}$", {"a", "b", "aa", "ab", "ba", "bb"}),
        ("^(a*|b)$", None),
        ("^a", None),
        ("^(){3,}$", {""}),
        ("^[a-z]{4}$", None),
    ],
)
def test_texts_of_a_pattern_are_listed_where_they_are_few(
    pattern: str, expected: set[str] | None
) -> None:
    assert texts(found_in(read(pattern)), 10) == expected


def test_a_deep_pattern_is_read_without_recursion() -> None:
    assert texts(whole(read("(" * 60_000 + "a" + ")" * 60_000)), 1) == {"a"}
    with pytest.raises(NotPlain, match="deeper"):
        read("(b|" * 60_000 + "a" + ")" * 60_000)
