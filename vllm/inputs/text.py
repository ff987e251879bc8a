"""Text that every process and tokenizer can take."""

from __future__ import annotations

from vllm.errors import BadRequest


def check_encodable(name: str, text: str, what: str | None = None) -> None:
    """Raises BadRequest for lone surrogates, which JSON can spell and UTF-8 cannot.

    `what` the text is, if not just the value of the field `name`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            f"{what or name} is not valid Unicode: a lone surrogate at character {error.start}",
            name,
        ) from None
