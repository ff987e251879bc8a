"""Command lines as vLLM's users write them: both spellings, YAML files, help by keyword."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from vllm.envs import inherited
from vllm.utils.output import last_words
from vllm.utils.text import did_you_mean

_TRUE = frozenset({"true", "1", "yes"})
_FALSE = frozenset({"false", "0", "no"})
JSON_METAVAR = "JSON"  # flags so marked can be given key by key: --flag.key value
HELP_COLUMN = 32
BOLD, PLAIN = "\033[1m", "\033[0m"


class FlagHelp(argparse.HelpFormatter):
    """Names a switch once and its value once, and has help in a column of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"max_help_position": HELP_COLUMN, **kwargs})

    def start_section(self, heading: str | None) -> None:
        is_plain = not sys.stdout.isatty() or inherited("NO_COLOR")
        super().start_section(heading if is_plain or not heading else f"{BOLD}{heading}{PLAIN}")

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not isinstance(action, argparse.BooleanOptionalAction):
            if not action.option_strings or action.nargs == 0:
                return super()._format_action_invocation(action)
            value = self._format_args(action, self._get_default_metavar_for_optional(action))
            return f"{', '.join(action.option_strings)} {value}"
        names = [name for name in action.option_strings if not name.startswith("--no-")]
        return ", ".join([*names, "--no-..."])


class FlexibleArgumentParser(argparse.ArgumentParser):
    """An ArgumentParser that also takes

    - `--some_flag` for `--some-flag`, and `--switch true|false` for `--[no-]switch`;
    - `--config FILE`: flags from a YAML file; those of the command line win;
    - `--json-flag.key value` for `--json-flag '{"key": value}'`;
    - `--help=WORD|GROUP|all|listgroup`; a group may be called as its class is, such as ModelConfig.

    Groups whose title is in `quiet` are left out of plain `--help`. Flags cannot be abbreviated.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", FlagHelp)
        super().__init__(*args, **kwargs)
        self.quiet: set[str] = set()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            parser = self._chosen(found)
            hints = [did_you_mean(word.partition("=")[0], parser._all_flags()) for word in rest]
            hint = "".join(dict.fromkeys(hints))
            parser.error(f"unrecognized arguments: {' '.join(rest)}.{hint}")
        return found

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        if self._has_commands():  # the command's own parser does all this
            self._send_help_to_commands(words)
        else:
            words = self._translate(words)
        return super().parse_known_args(words, namespace)

    def format_help(self) -> str:
        return self._format([g for g in self._action_groups if g.title not in self.quiet])

    def format_help_about(self, topic: str) -> str:
        """Help on one group, on all, or on flags that mention a word."""
        if topic.lower() == "all":
            return self._format(self._action_groups)
        if topic.lower() == "listgroup":
            return self._group_list()
        wanted = (topic.lower(), topic.lower().removesuffix("config"))
        named = [g for g in self._action_groups if (g.title or "").lower() in wanted]
        if named:
            return self._format(named, usage=False)
        return self._format_matching(topic.lower().replace("_", "-").lstrip("-"), topic)

    def error(self, message: str) -> NoReturn:
        last_words(f"{self.prog}: {message}\n`{self.prog} --help` explains the flags.")
        sys.exit(2)

    def _has_commands(self) -> bool:
        return any(isinstance(a, argparse._SubParsersAction) for a in self._actions)

    def _send_help_to_commands(self, words: list[str]) -> None:
        """A search that comes before a command's name would otherwise be a puzzling error."""
        if words and words[0].startswith("--help="):
            names = [name for a in self._actions for name in a.choices or ()]
            self.error(
                f"{words[0]}: searches the flags of a command, as `{self.prog} {names[0]} "
                f"{words[0]}`. Commands: {', '.join(names)}."
            )

    def _chosen(self, found: argparse.Namespace) -> FlexibleArgumentParser:
        """The parser of the command in `found`; this one if there are no commands."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                name = vars(found).get(action.dest)
                parser = action.choices.get(name) if name else None
                if isinstance(parser, FlexibleArgumentParser):
                    return parser
        return self

    def _all_flags(self) -> Iterator[str]:
        for action in self._actions:
            yield from action.option_strings

    def _translate(self, words: list[str]) -> list[str]:
        words = [self._dashes(word) for word in words]
        words = self._expand_config(words)
        self._answer_help(words)
        return self._join_switches(self._join_json(words))

    def _dashes(self, word: str) -> str:
        if not word.startswith("--") or word in self._option_string_actions:
            return word
        flag, equals, value = word.partition("=")
        base, dot, key = flag.partition(".")
        return base.replace("_", "-") + dot + key + equals + value

    def _answer_help(self, words: list[str]) -> None:
        for word in words:
            if word.startswith("--help="):
                self._print_message(self.format_help_about(word.partition("=")[2]), sys.stdout)
                self.exit()

    def _group_list(self) -> str:
        lines = [f"`{self.prog} --help=GROUP` shows one of:"]
        for group in self._action_groups:
            flags = len(group._group_actions)
            if group.title and flags:
                lines.append(f"  {group.title:<{HELP_COLUMN - 8}}{flags} flags")
        return "\n".join(lines) + "\n"

    def _is_switch(self, flag: str) -> bool:
        action = self._option_string_actions.get(flag)
        return isinstance(action, argparse.BooleanOptionalAction)

    def _join_switches(self, words: list[str]) -> list[str]:
        """`--switch false` and `--switch=false` as `--no-switch`."""
        result: list[str] = []
        index = 0
        while index < len(words):
            flag, equals, value = words[index].partition("=")
            index += 1
            if not self._is_switch(flag):
                result.append(words[index - 1])
                continue
            if not equals and index < len(words) and words[index].lower() in _TRUE | _FALSE:
                value = words[index]
                index += 1
            elif not equals:
                value = "true"
            if value.lower() not in _TRUE | _FALSE:
                self.error(f"{flag}={value}: must be true or false.")
            is_on = (value.lower() in _TRUE) != flag.startswith("--no-")
            positive = "--" + flag.removeprefix("--no-") if flag.startswith("--no-") else flag
            result.append(positive if is_on else "--no-" + positive[2:])
        return result

    def _join_json(self, words: list[str]) -> list[str]:
        """`--flag.a.b 1` and the like, merged into one `--flag={"a": {"b": 1}}`."""
        gathered: dict[str, dict[str, Any]] = {}
        result: list[str] = []
        rest = iter(words)
        for word in rest:
            head, equals, value = word.partition("=")
            base, dot, path = head.partition(".")
            action = self._option_string_actions.get(base)
            if not dot or action is None or action.metavar != JSON_METAVAR:
                result.append(word)
                continue
            text = value if equals else next(rest, None)
            if text is None:
                self.error(f"{head}: expected a value.")
            inner = gathered.setdefault(base, {})
            *parents, last = path.split(".")
            for parent in parents:
                inner = inner.setdefault(parent, {})
                if not isinstance(inner, dict):
                    self.error(f"{head}: {parent} has a value of its own already.")
            inner[last] = _json_or_text(text)
        return [*result, *(f"{flag}={json.dumps(value)}" for flag, value in gathered.items())]

    def _expand_config(self, words: list[str]) -> list[str]:
        """Put the flags of `--config FILE` where those of the command line come after them."""
        if "--config" in self._option_string_actions:
            return words  # a flag of the application's own
        index = next((i for i, w in enumerate(words) if w.split("=")[0] == "--config"), None)
        if index is None:
            return words
        _, equals, path = words[index].partition("=")
        taken = 1 if equals else 2
        path = path if equals else "".join(words[index + 1 : index + 2])
        if not path:
            self.error("--config: name a YAML file.")
        rest = words[:index] + words[index + taken :]
        first_flag = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
        has_model = first_flag > 0 or any(word.split("=")[0] == "--model" for word in rest)
        extra = self._read_config(path, skip={"model", "model-tag"} if has_model else set())
        return rest[:first_flag] + extra + rest[first_flag:]

    def _read_config(self, path: str, skip: set[str]) -> list[str]:
        try:
            values = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            self.error(f"--config {path}: {error.strerror or error}.")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self.error(f"--config {path}: is not valid YAML: {error}")
        if values is not None and not isinstance(values, dict):
            self.error(f"--config {path}: must hold lines of 'flag: value'.")
        words: list[str] = []
        for key, value in (values or {}).items():
            name = str(key).replace("_", "-").lstrip("-")
            if name not in skip:
                text = str(key).lstrip("-")
                flag = "--model" if name == "model-tag" else self._dashes(f"--{text}")
                words += self._words_of(self._known(flag, f"--config {path}: {key}"), value)
        return words

    def _known(self, flag: str, where: str) -> str:
        """`flag`, if there is one of this name."""
        if flag.partition(".")[0] not in self._option_string_actions:
            hint = did_you_mean(flag, self._all_flags())
            self.error(f"{where}: there is no flag {flag}.{hint}")
        return flag

    def _words_of(self, flag: str, value: Any) -> list[str]:
        if value is None:
            return []
        if isinstance(value, bool) and self._is_switch(flag):
            return [f"{flag}={str(value).lower()}"]
        action = self._option_string_actions.get(flag)
        if isinstance(value, bool) and action is not None and action.nargs == 0:
            return [flag] * value
        if isinstance(value, dict):
            return [f"{flag}={json.dumps(value)}"]
        if isinstance(value, list):
            return [flag, *(v if isinstance(v, str) else json.dumps(v) for v in value)]
        return [f"{flag}={value}"]

    def _format(self, groups: Sequence[argparse._ArgumentGroup], usage: bool = True) -> str:
        formatter = self._get_formatter()
        if usage:
            formatter.add_usage(self.usage or f"{self.prog} [flags]", [], [], "usage: ")
            formatter.add_text(self.description)
        for group in groups:
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        if usage:
            formatter.add_text(self.epilog)
        return formatter.format_help()

    def _format_matching(self, pattern: str, word: str) -> str:
        formatter = self._get_formatter()
        found = 0
        for group in self._action_groups:
            actions = [a for a in group._group_actions if _mentions(a, pattern, word.lower())]
            found += len(actions)
            formatter.start_section(group.title)
            formatter.add_arguments(actions)
            formatter.end_section()
        if not found:
            names = [group.title or "" for group in self._action_groups]
            flags = [flag[2:] for flag in self._all_flags()]
            hint = did_you_mean(word, [*names, *flags])
            return f"Nothing mentions {word!r}.{hint} Groups: {', '.join(names)}.\n"
        return formatter.format_help()


def _mentions(action: argparse.Action, pattern: str, word: str) -> bool:
    in_flags = any(pattern in flag for flag in action.option_strings)
    # From the start of a word: "rate" is not about what is generated.
    return in_flags or bool(re.search(rf"(?<!\w){re.escape(word)}", (action.help or "").lower()))


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
