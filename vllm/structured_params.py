"""What a request may ask of the form of its output: a schema, an expression, a grammar."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from vllm.errors import BadRequest

KINDS: Final = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
BACKENDS: Final = ("auto", "xgrammar", "guidance")
# Compilation takes time that grows with the text: this much compiles in seconds at worst.
MAX_SPEC_CHARS: Final = 128 * 1024
MAX_NESTING: Final = 200


class ReasoningFirst(msgspec.Struct, frozen=True, kw_only=True):
    """Reasoning that ends with the first of `ends`; then the form begins.

    Unless it is open, the first that is drawn is one of `starts`, or there is no reasoning.
    """

    starts: tuple[str, ...]
    ends: tuple[str, ...]
    is_open: bool
    is_spelled: bool = False  # one of starts may take more than one token
    begun: str = ""  # the beginning of a marker that the prompt ends with


class _Forms(msgspec.Struct, omit_defaults=True):
    """Those that vLLM's callers may give without their names, in its order."""

    json: Any = None  # a JSON schema: text or an object
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # EBNF or Lark
    json_object: bool | None = None


class StructuredOutputsParams(_Forms, kw_only=True):
    """The form of an output: exactly one of KINDS, and how to read it.

    Values are checked at construction, as far as that needs no compiler; what a schema or grammar
    means is checked by the engine when it is compiled. Raises BadRequest.
    """

    structural_tag: Any = None  # text or an object
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    backend: str | None = None  # instead of the engine's
    disable_fallback: bool = False  # no other backend than the named one, or than auto's first
    backend_was_auto: bool = False  # of older vLLM's own bookkeeping
    reasoning: ReasoningFirst | None = None  # what may come before the form
    asked_as: str = "structured_outputs"  # the parameter that errors name

    def __post_init__(self) -> None:
        try:
            self._check()
        except BadRequest as error:
            if self.asked_as == error.param:
                raise
            message = str(error).removeprefix(f"{error.param}: ")
            raise BadRequest(f"{self.asked_as}: {message}", self.asked_as) from None

    def _check(self) -> None:
        if self.json is False:
            self.json = "false"  # a schema that nothing meets
        if self.reasoning is not None and not isinstance(self.reasoning, ReasoningFirst):
            raise _error("reasoning is said by --reasoning-parser; leave it out")
        given = [name for name in KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            said = f"got {' and '.join(given)}" if given else "got none"
            raise _error(f"exactly one of {', '.join(KINDS)} must be given, {said}")
        kind = given[0]
        if kind in ("json", "structural_tag"):
            setattr(self, kind, _as_json_text(kind, getattr(self, kind)))
        elif kind == "choice":
            self.choice = _checked_choice(self.choice)
        elif kind != "json_object" and not isinstance(getattr(self, kind), str):
            raise _error(f"{kind} must be text, got {getattr(self, kind)!r}")
        if self.backend is not None:
            self._read_backend(self.backend)
        if len(self.spec) > MAX_SPEC_CHARS:
            raise _error(f"{kind} has {len(self.spec)} characters; {MAX_SPEC_CHARS} are allowed")
        if kind != "json_object" and not self.spec.strip():
            raise _error(f"{kind} is empty")

    def _read_backend(self, text: str) -> None:
        """A name, or as older vLLM wrote options: "xgrammar:disable-any-whitespace"."""
        name, _, options = text.partition(":")
        for option in filter(None, options.split(",")):
            if option == "disable-any-whitespace":
                self.disable_any_whitespace = True
            elif option == "no-additional-properties":
                self.disable_additional_properties = True
            elif option == "no-fallback":
                self.disable_fallback = True
            else:
                raise _error(f"backend: there is no option {option!r}")
        if name not in BACKENDS:
            raise _error(f"backend must be one of {', '.join(BACKENDS)}, got {text!r:.100}")
        self.backend = name

    @classmethod
    def from_optional(
        cls,
        json: Any = None,
        regex: str | None = None,
        choice: list[str] | None = None,
        grammar: str | None = None,
        json_object: bool | None = None,
        backend: str | None = None,
        whitespace_pattern: str | None = None,
        structural_tag: Any = None,
    ) -> StructuredOutputsParams | None:
        """None if no form is given."""
        forms = (json, regex, choice, grammar, json_object, structural_tag)
        if all(form is None for form in forms):
            return None
        return cls(
            json,
            regex,
            choice,
            grammar,
            json_object,
            structural_tag=structural_tag,
            backend=backend,
            whitespace_pattern=whitespace_pattern,
        )

    def all_constraints_none(self) -> bool:
        return self.all_non_structural_tag_constraints_none() and self.structural_tag is None

    def all_non_structural_tag_constraints_none(self) -> bool:
        return all(getattr(self, name) is None for name in KINDS if name != "structural_tag")

    @property
    def kind(self) -> str:
        """Which of KINDS was given."""
        return next(name for name in KINDS if getattr(self, name) not in (None, False))

    @property
    def spec(self) -> str:
        """The text to compile; choices as a JSON list."""
        value = getattr(self, self.kind)
        if self.kind == "choice":
            return json.dumps(value)
        return "" if self.kind == "json_object" else str(value)


# Its name in older releases of vLLM.
GuidedDecodingParams = StructuredOutputsParams


def _error(message: str) -> BadRequest:
    return BadRequest(f"structured_outputs: {message}", "structured_outputs")


def _as_json_text(kind: str, value: Any) -> str:
    """An object as JSON text, and text only if it is a JSON object."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _error(f"{kind} is not valid JSON: {error}") from None
    elif isinstance(value, type):
        value = value.model_json_schema()  # a pydantic model
    if not isinstance(value, dict | bool):
        raise _error(f"{kind} must be a JSON object, got {value!r:.100}")
    if _nesting(value) > MAX_NESTING:
        raise _error(f"{kind} is nested deeper than {MAX_NESTING} levels")
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _error(f"{kind} cannot be written as JSON: {error}") from None


def _nesting(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= MAX_NESTING:
        depth += 1
        level = [
            item
            for node in level
            if isinstance(node, dict | list)
            for item in (node.values() if isinstance(node, dict) else node)
        ]
    return depth


def _checked_choice(value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not value:
        raise _error(f"choice must be a list of texts that is not empty, got {value!r:.100}")
    wrong = next((item for item in value if not isinstance(item, str) or not item), None)
    if wrong is not None or "" in value:
        raise _error(f"choice must hold texts that are not empty, got {wrong!r:.100}")
    return list(dict.fromkeys(value))
