"""`vllm chat`"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.config.flags import add_settings, from_flags
from vllm.config.option import option, settings_of
from vllm.entrypoints.cli.client import DIM, PLAIN, Client, ClientOptions, NoAnswer

COMMANDS = """\
/system TEXT  begin anew, with this instruction
/clear        begin anew
/exit         end (so does Ctrl-D)
Ctrl-C stops an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions(ClientOptions):
    system_prompt: str = option("", help="Instruction that opens the chat.")


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    add_settings(parser, "chat", settings_of(ChatOptions))


def run(args: argparse.Namespace) -> None:
    options = from_flags(ChatOptions, args)
    client = Client(options)
    if options.is_conversation:
        print(f"{client.model} at {options.url}. /help lists commands.")
    conversation = Conversation(client, options.system_prompt)
    for text in options.texts():
        if options.is_conversation and text.startswith("/"):
            if not conversation.obey(text):
                return
            continue
        try:
            conversation.say(text)
        except NoAnswer as error:
            if not options.is_conversation:
                raise
            print(f"{error}\nYour message was not kept; /clear forgets the others.")


class Conversation:
    """Owns the messages so far. One without an answer is not kept."""

    def __init__(self, client: Client, system_prompt: str) -> None:
        self.client = client
        self.messages: list[dict[str, str]] = []
        self.clear(system_prompt)

    def clear(self, system_prompt: str) -> None:
        self.system_prompt = system_prompt
        self.messages = [{"role": "system", "content": system_prompt}] if system_prompt else []

    def say(self, text: str) -> None:
        """Print the answer to `text`. Raises NoAnswer."""
        messages = [*self.messages, {"role": "user", "content": text}]
        words = _Words()
        self.client.answer("/chat/completions", {"messages": messages}, words.of)
        self.messages = [*messages, {"role": "assistant", "content": "".join(words.content)}]

    def obey(self, command: str) -> bool:
        """Do what a line that starts with / says; False: the user wants to end."""
        name, _, rest = command.strip().partition(" ")
        if name in ("/exit", "/quit"):
            return False
        if name == "/system":
            self.clear(rest.strip())
        elif name == "/clear":
            self.clear(self.system_prompt)
        else:
            print(COMMANDS)
        return True


class _Words:
    """What a message says, apart from what the model thinks before it."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.is_thinking = False

    def of(self, choice: Any) -> str:
        """The text to show for an event."""
        delta = choice.get("delta") or {}
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        content = delta.get("content") or ""
        self.content.append(content)
        dim, plain = (DIM, PLAIN) if sys.stdout.isatty() else ("", "")
        shown = ""
        if thought:
            shown += thought if self.is_thinking else dim + thought
            self.is_thinking = True
        if content and self.is_thinking:
            shown += f"{plain}\n"
            self.is_thinking = False
        return shown + content
