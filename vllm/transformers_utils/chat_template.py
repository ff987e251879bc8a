"""Chat templates rendered as by transformers, without one of its tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def import_renderer() -> None:
    """What the first template waits for: half a second."""
    import transformers.utils.chat_template_utils  # noqa: F401


def render_template(
    conversation: Sequence[Mapping[str, Any]],
    chat_template: str,
    special_tokens: Mapping[str, str],
    /,
    **arguments: Any,
) -> str:
    """As `apply_chat_template` of a tokenizer with these special tokens, which `arguments` may
    replace. Raises what the template raises."""
    from transformers.utils.chat_template_utils import render_jinja_template

    # Templates ask whether a field is there, not whether it is None.
    messages = [{k: v for k, v in message.items() if v is not None} for message in conversation]
    rendered: Any = render_jinja_template(
        [messages], chat_template=chat_template, **{**special_tokens, **arguments}
    )
    prompts: list[str] = rendered[0]
    return prompts[0]
