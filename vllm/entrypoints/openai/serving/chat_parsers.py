"""The parsers that --tool-call-parser and --reasoning-parser choose."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from vllm.entrypoints.openai.server_options import ServerOptions
from vllm.entrypoints.openai.serving.tool_choice import ToolChoice
from vllm.errors import BadRequest, ConfigError
from vllm.parsers.deltas import Delta, MessageParser, ReasoningDelta
from vllm.parsers.markers import common_length, held_back
from vllm.parsers.message import Message, PlainText
from vllm.parsers.reasoning.base import REASONING_PARSERS, ReasoningParser
from vllm.parsers.registry import load_plugin
from vllm.parsers.tools.base import TOOL_PARSERS, ToolParser
from vllm.structured_params import ReasoningFirst


class ChatParsers:
    """Chosen once, when the server starts. Raises ConfigError for names that do not exist."""

    def __init__(self, options: ServerOptions, special_tokens: Collection[str] = ()) -> None:
        if options.tool_parser_plugin:
            load_plugin("--tool-parser-plugin", options.tool_parser_plugin)
        if options.reasoning_parser_plugin:
            load_plugin("--reasoning-parser-plugin", options.reasoning_parser_plugin)
        self.tools: type[ToolParser] | None = None
        self.reasoning: type[ReasoningParser] | None = None
        if options.tool_call_parser:
            self.tools = TOOL_PARSERS.get(options.tool_call_parser)
        if options.reasoning_parser:
            self.reasoning = REASONING_PARSERS.get(options.reasoning_parser)
        if options.enable_auto_tool_choice and self.tools is None:
            raise ConfigError(
                "--enable-auto-tool-choice needs --tool-call-parser, one of "
                f"{', '.join(TOOL_PARSERS.names())}."
            )
        self._is_auto = options.enable_auto_tool_choice
        self._hides_reasoning = any(marker in special_tokens for marker in self._markers)

    def check(self, choice: ToolChoice) -> None:
        """Raises BadRequest if calls would come that nothing reads."""
        if choice.choice == "auto" and not self._is_auto:
            raise BadRequest(
                "tool_choice 'auto' needs a server that was started with --enable-auto-tool-choice "
                "and --tool-call-parser; set tool_choice to 'none', 'required' or a function",
                "tool_choice",
            )

    def shows_special_tokens(self, choice: ToolChoice) -> bool:
        """Whether the text must hold the tokens that mark calls or reasoning."""
        return self._hides_reasoning or (
            choice.choice == "auto" and self.tools is not None and self.tools.needs_special_tokens
        )

    def maker(
        self, choice: ToolChoice, begun: str, include_reasoning: bool
    ) -> Callable[[], Message]:
        """Makes a parser for each choice of an answer, of which the prompt has what is `begun`."""

        def make() -> Message:
            reasoning: MessageParser = PlainText()
            if self.reasoning is not None:
                reasoning = self.reasoning(begun)
                if not include_reasoning:
                    reasoning = _WithoutReasoning(reasoning)
            return Message(reasoning, choice.parser(self.tools))

        return make

    def has_markers(self, prompt: str) -> bool:
        """Whether a prompt has anything that may be reasoning, or the beginning of it."""
        if any(map(prompt.__contains__, self._markers)):
            return True
        return held_back(prompt, self._markers) > 0

    def ends_with_marker(self, prompt: str) -> bool:
        return prompt.rstrip().endswith(self._markers)

    def begun(self, prompt: str, before: str) -> str:
        """What the prompt has of the message to be made: all that the conversation `before` that
        message has not."""
        length = common_length(prompt, before)
        return prompt[length - held_back(prompt[:length], self._markers) :]

    def before_form(self, prompt: str, begun: str) -> ReasoningFirst | None:
        """What the model may write before a form begins; None if that begins at once."""
        if self.reasoning is None or (is_open := self.reasoning.is_open(begun)) is False:
            return None
        cut = self.reasoning.cut_marker(begun)
        return ReasoningFirst(
            starts=tuple(self.reasoning.starts),
            ends=tuple(self.reasoning.ends),
            is_open=bool(is_open),
            # A model that is not told so begins other sentences like a marker of several words.
            is_spelled=bool(cut) or any(map(prompt.__contains__, self.reasoning.starts)),
            begun=cut,
        )

    @property
    def _markers(self) -> tuple[str, ...]:
        return () if self.reasoning is None else (*self.reasoning.starts, *self.reasoning.ends)


class _WithoutReasoning:
    def __init__(self, parser: MessageParser) -> None:
        self._parser = parser

    def push(self, text: str) -> list[Delta]:
        return _content(self._parser.push(text))

    def finish(self) -> list[Delta]:
        return _content(self._parser.finish())


def _content(deltas: Iterable[Delta]) -> list[Delta]:
    return [delta for delta in deltas if not isinstance(delta, ReasoningDelta)]
