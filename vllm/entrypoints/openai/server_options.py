"""The settings of the server itself; the engine's are in vllm.config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from vllm.config.kinds import INT, OBJECT
from vllm.config.option import Setting, option, settings_of
from vllm.entrypoints.openai.transport.options import TransportOptions
from vllm.parsers.reasoning.base import REASONING_PARSERS
from vllm.parsers.tools.base import TOOL_PARSERS


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(TransportOptions):
    chat_template: str = option(
        "",
        help="Chat template to use instead of the tokenizer's: a Jinja file, or the template.",
    )
    chat_template_content_format: Literal["auto", "string", "openai"] = option(
        "auto",
        choices=("auto", "string", "openai"),
        help="How the template reads a message's content: as text, or as a list of parts.",
    )
    trust_request_chat_template: bool = option(
        False, help="Run chat templates that come with a request."
    )
    response_role: str = option("assistant", help="Role of the messages the server answers with.")
    default_chat_template_kwargs: dict[str, Any] = option(
        {},
        kind=OBJECT,
        help='Arguments of chat templates, such as {"enable_thinking": false}; those of a request '
        "win.",
    )
    enable_auto_tool_choice: bool = option(
        False, help="Let models call the functions a request offers, as --tool-call-parser reads."
    )
    tool_call_parser: str = option(
        "",
        help="Notation in which the model writes calls of functions: "
        f"{', '.join(TOOL_PARSERS.names())}, or one of a plug-in.",
    )
    tool_parser_plugin: str = option(
        "", help="Python file that registers parsers for --tool-call-parser."
    )
    exclude_tools_when_tool_choice_none: bool = option(
        False, help="Do not show functions to the chat template if none may be called."
    )
    reasoning_parser: str = option(
        "",
        help="Notation in which the model writes its reasoning before the answer: "
        f"{', '.join(REASONING_PARSERS.names())}, or one of a plug-in.",
    )
    reasoning_parser_plugin: str = option(
        "", help="Python file that registers parsers for --reasoning-parser."
    )
    return_tokens_as_token_ids: bool = option(
        False, help="Write the tokens of log-probabilities as 'token_id:N'."
    )
    enable_force_include_usage: bool = option(
        False, help="End every stream with its usage, asked for or not."
    )
    enable_prompt_tokens_details: bool = option(
        False, help="Say in the usage how many prompt tokens came from the prefix cache."
    )
    enable_tokenizer_info_endpoint: bool = option(
        False, help="Offer /tokenizer_info: the tokenizer's settings and chat template."
    )
    max_log_len: int = option(
        None,
        kind=INT,
        low=0,
        auto="no limit",
        help="Most characters and token ids of a prompt, and characters of an output, in the log.",
    )
    enable_log_outputs: bool = option(False, help="Log every output once it has ended.")
    disable_ui: bool = option(False, help="No page at / and no figures of the engine for it.")


def server_settings() -> Iterator[Setting]:
    return settings_of(ServerOptions)
