"""The form of the output, under all the names by which a request may ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm.entrypoints.openai.protocol.common import GenerationRequest, ResponseFormat
from vllm.errors import BadRequest
from vllm.structured_params import StructuredOutputsParams

# Fields of older releases, by the field of StructuredOutputsParams.
GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "structural_tag": "structural_tag",
}
GUIDED_OPTIONS = {
    "guided_decoding_backend": "backend",
    "guided_whitespace_pattern": "whitespace_pattern",
}


def structured_outputs_of(request: GenerationRequest) -> StructuredOutputsParams | None:
    """None: free text. Raises BadRequest naming the field."""
    found = list(_asked(request))
    if not found:
        _refuse_idle_options(request)
        return None
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise BadRequest(f"{names} both say what form the output has; give one", found[1][0])
    field, values = found[0]
    options = {
        to: getattr(request, name)
        for name, to in GUIDED_OPTIONS.items()
        if getattr(request, name) is not None
    }
    try:
        return StructuredOutputsParams(**{**options, **values, "asked_as": field})
    except TypeError as error:  # a keyword there is not
        raise BadRequest(f"{field}: {error}", field) from None


def _asked(request: GenerationRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    if request.structured_outputs is not None:
        yield "structured_outputs", request.structured_outputs
    if request.response_format is not None and request.response_format.type != "text":
        yield "response_format", _of_response_format(request.response_format)
    for name, kind in GUIDED.items():
        value = getattr(request, name)
        if value is not None:
            yield name, {kind: value}


def _of_response_format(asked: ResponseFormat) -> dict[str, Any]:
    extra = asked.model_extra or {}
    if asked.type == "json_object":
        return {"json_object": True}
    if asked.type == "structural_tag":
        return {"structural_tag": {"type": "structural_tag", **extra}}
    named = extra.get("json_schema")
    if not isinstance(named, dict):
        raise BadRequest(
            "response_format: type json_schema needs json_schema, an object with a name and a "
            "schema",
            "response_format.json_schema",
        )
    schema = named.get("schema", {})
    if not isinstance(schema, dict | bool):
        raise BadRequest(
            "response_format.json_schema.schema must be a JSON schema",
            "response_format.json_schema.schema",
        )
    # Strict is what a grammar is: there is no other way to follow a schema here.
    return {"json": schema}


def _refuse_idle_options(request: GenerationRequest) -> None:
    for name in GUIDED_OPTIONS:
        if getattr(request, name) is not None:
            raise BadRequest(
                f"{name} needs a form to apply to: response_format, structured_outputs or one of "
                f"{', '.join(GUIDED)}",
                name,
            )
