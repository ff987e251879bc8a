"""Bodies that a hostile or broken client might send. Always the same ones, in the same order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

HUGE = 10**400
JSON_TYPE = "application/json"
# Put into every field of every body, whatever its type.
WRONG_VALUES: Mapping[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus": -1,
    "max_i64": 2**63 - 1,
    "over_i64": 2**63,
    "min_i64": -(2**63) - 1,
    "over_u64": 2**64 + 1,
    "billion": 10**9,
    "fraction": 0.5,
    "tiny": 5e-324,
    "large": 1.7976931348623157e308,
    "empty": "",
    "text": "nonsense",
    "digits": "12",
    "nul": "\0",
    "newlines": "a\r\nb: c\n",
    "surrogate": "\ud800",
    "unicode": "\u202egnp\U0010ffff",
    "long": "x" * 20_000,
    "list": [],
    "nulls": [None, None],
    "mixed": [1, "a", None, {}],
    "nested": [[[[[[]]]]]],
    "numbers": [-1, 2**70],
    "object": {},
    "odd_object": {"": None, "a": {"b": [1, {"c": "d"}]}},
    "typed_object": {"type": "nonsense"},
}
# Numbers as they cannot be written by json.dumps, or should not be.
WRONG_NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "-0", "0." + "1" * 400)
RANDOM_MESSAGE = [{"role": "user", "content": "hello"}]
TEN_MB = "story " * (10 * 2**20 // 6)
CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": JSON_TYPE})
    method: str = "POST"


# The smallest body of each route that it answers with 200.
BODIES: Mapping[str, Mapping[str, Any]] = {
    COMPLETION: {"prompt": "Once", "max_tokens": 2},
    CHAT: {"messages": RANDOM_MESSAGE, "max_tokens": 2},
    "/tokenize": {"prompt": "Once"},
    "/detokenize": {"tokens": [5, 6]},
    "/invocations": {"prompt": "Once", "max_tokens": 2},
    "/v1/responses": {"input": "Once", "max_output_tokens": 2, "store": False},
    "/v1/messages": {"model": "story", "messages": RANDOM_MESSAGE, "max_tokens": 2},
    "/v1/messages/count_tokens": {"model": "story", "messages": RANDOM_MESSAGE},
}


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def wrong_fields(path: str, fields: list[str]) -> Iterator[Case]:
    """Every wrong value in every field, one at a time."""
    good = BODIES[path]
    for name in fields:
        for label, value in WRONG_VALUES.items():
            yield Case(f"{path} {name}={label}", path, encoded({**good, name: value}))
        rest = encoded({key: value for key, value in good.items() if key != name})[:-1]
        comma = b", " if len(rest) > 1 else b""
        for number in WRONG_NUMBERS:
            body = rest + comma + json.dumps(name).encode() + b": " + number.encode() + b"}"
            yield Case(f"{path} {name}={number[:9]}", path, body)


def not_json(path: str) -> Iterator[Case]:
    good = encoded(BODIES[path])
    bodies = {
        "empty": b"",
        "space": b" ",
        "null": b"null",
        "number": b"1",
        "text": b'"text"',
        "list": b"[]",
        "object": b"{}",
        "cut": good[:-1],
        "twice": good + good,
        "nul": b"\0" * 100,
        "bom": b"\xef\xbb\xbf" + good,
        "utf16": good.decode().encode("utf-16"),
        "invalid utf8": good.replace(b"Once", b"\xff\xfe").replace(b"hello", b"\xc3\x28"),
        "overlong": good.replace(b"Once", b"\xc0\xaf").replace(b"hello", b"\xed\xa0\x80"),
        "brackets": b"[" * 100_000,
        "braces": b'{"a":' * 100_000,
        "closed brackets": b"[" * 100_000 + b"]" * 100_000,
        "deep extra": good[:-1] + b', "extra": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "shallow extra": good[:-1] + b', "extra": ' + b"[" * 900 + b"]" * 900 + b"}",
        "deep objects": good[:-1] + b', "extra": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
        "duplicate keys": good[:-1] + b', "max_tokens": 3, "max_tokens": 1, "stop": []}',
        "comment": b"/* */" + good,
        "single quotes": good.replace(b'"', b"'"),
        "trailing comma": good[:-1] + b",}",
        "many keys": encoded({**BODIES[path], **{f"k{i}": i for i in range(20_000)}}),
        "huge number": good[:-1] + b', "extra": ' + b"9" * 100_000 + b"}",
        "constructor": good[:-1] + b', "__class__": {"__init__": {"__globals__": {}}}}',
    }
    for label, body in bodies.items():
        yield Case(f"{path} body {label}", path, body)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "x"):
        yield Case(f"{path} content-type {kind!r}", path, good, {"content-type": kind})
    for encoding in ("gzip", "br", "nonsense"):
        headers = {"content-type": JSON_TYPE, "content-encoding": encoding}
        yield Case(f"{path} content-encoding {encoding}", path, good, headers)
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"):
        yield Case(f"{path} {method}", path, b"", {}, method)


def headers(path: str = COMPLETION) -> Iterator[Case]:
    odd = {
        "x-request-id": ("a b", "x" * 300, "", "\t", "é", "1;drop", "%0d%0aSet-Cookie: a=b", "{}"),
        "traceparent": ("x", "00-" + "0" * 32 + "-" + "0" * 16 + "-00", "00-f", "é" * 50),
        "authorization": ("Bearer", "Basic Og==", "Bearer " + "x" * 10_000, "é"),
        "accept": ("image/png", "*/*;q=9", "x" * 8000),
        "origin": ("null", "http://evil.example", "\t"),
        "host": ("evil.example", "[", "a" * 1000),
        "cookie": ("x" * 16_000, "=;=;="),
        "x-forwarded-for": ("::1", "'; --"),
        "content-length-hint": ("-1",),
        "accept-encoding": ("gzip, br, nonsense",),
        "expect": ("200-ok",),
    }
    good = encoded(BODIES[path])
    for name, values in odd.items():
        for value in values:
            sent = {"content-type": JSON_TYPE, name: value}
            yield Case(f"header {name}={value[:12]!r}", path, good, sent)
    many = {f"x-{i}": "y" for i in range(400)}
    yield Case("400 headers", path, good, {"content-type": JSON_TYPE, **many})


def sizes() -> Iterator[Case]:
    """Large or odd in one way each; the model takes 1024 tokens."""
    yield from _huge_completions()
    yield from _odd_chats()


def _huge_completions() -> Iterator[Case]:
    vocabulary = {str(i): 1.0 for i in range(100_000)}
    completion: dict[str, dict[str, Any]] = {
        "10 MB": {"prompt": TEN_MB},
        "10 MB of one letter": {"prompt": "a" * 10 * 2**20},
        "10 MB of newlines": {"prompt": "\n" * 10 * 2**20},
        "3 MB of astral characters": {"prompt": "\U0001f600" * 750_000},
        "a million ids": {"prompt": [5] * 1_000_000},
        "an id too large": {"prompt": [10**9]},
        "100 000 texts": {"prompt": ["a"] * 100_000},
        "empty lists": {"prompt": [[]] * 1000},
        "5000 stop strings": {"stop": [f"stop{i}" for i in range(5000)]},
        "a stop string of 1 MB": {"stop": "a" * 2**20},
        "100 000 stop ids": {"stop_token_ids": list(range(100_000))},
        "10 000 bad words": {"bad_words": [f"word{i}" for i in range(10_000)]},
        "empty bad word": {"bad_words": ["", " "]},
        "huge logit_bias": {"logit_bias": vocabulary},
        "logit_bias by names": {"logit_bias": {"a": 1}},
        "logit_bias out of range": {"logit_bias": {"-5": 1, "99999999999999999999": 1}},
        "logit_bias of 1e308": {"logit_bias": {"5": 1e308}},
        "every id allowed": {"allowed_token_ids": list(range(100_000))},
        "no id allowed": {"allowed_token_ids": []},
        "n of a billion": {"n": 10**9},
        "best_of of a billion": {"best_of": 10**9},
        "max_tokens of a billion": {"max_tokens": 10**9},
        "min_tokens of a billion": {"min_tokens": 10**9, "max_tokens": None},
        "logprobs of a billion": {"logprobs": 10**9},
        "prompt_logprobs of a billion": {"prompt_logprobs": 10**9},
        "truncated to a billion": {"truncate_prompt_tokens": 10**9},
        "truncated to -2": {"truncate_prompt_tokens": -2},
        "a million beams": {"use_beam_search": True, "n": 1_000_000},
        "request_id of 1 MB": {"request_id": "r" * 2**20},
        "request_id with lines": {"request_id": 'a"\n\r\0b'},
        "cache_salt of 1 MB": {"cache_salt": "s" * 2**20},
        "model with lines": {"model": "story\r\nX-Evil: 1"},
        "model of 1 MB": {"model": "m" * 2**20},
        "user of 1 MB": {"user": "u" * 2**20},
        "stream as text": {"stream": "yes please"},
        "all negative": dict.fromkeys(
            "n best_of max_tokens temperature top_p top_k min_p seed min_tokens logprobs".split(),
            -7,
        ),
    }
    for label, changed in completion.items():
        body = {**BODIES[COMPLETION], **changed}
        yield Case(f"size: {label}", COMPLETION, encoded(body))
        yield Case(f"size, streamed: {label}", COMPLETION, encoded({"stream": True, **body}))


def _odd_chats() -> Iterator[Case]:
    part = {"type": "text", "text": "a"}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{" * 5000}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    chat: dict[str, dict[str, Any]] = {
        "10 MB": {"messages": [{"role": "user", "content": TEN_MB}]},
        "10 000 messages": {"messages": RANDOM_MESSAGE * 10_000},
        "10 000 parts": {"messages": [{"role": "user", "content": [part] * 10_000}]},
        "no role": {"messages": [{"content": "a"}]},
        "role of markup": {"messages": [{"role": "<|im_end|>", "content": "<|im_start|>"}]},
        "image": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "file URL": {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
                        {"type": "input_audio", "input_audio": {"data": "="}},
                    ],
                }
            ]
        },
        "broken call": {"messages": [*RANDOM_MESSAGE, {"role": "assistant", "tool_calls": [call]}]},
        "calls of nothing": {"messages": [{"role": "assistant", "tool_calls": [None, 1, {}]}]},
        "tool of no call": {"messages": [{"role": "tool", "content": "x"}]},
        "tools of nothing": {"tools": [{}], "tool_choice": "required"},
        "tools by hundreds": {
            "tools": [{**tool, "function": {"name": f"f{i}"}} for i in range(500)],
            "tool_choice": "required",
        },
        "unknown tool": {
            "tools": [tool],
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        "tool of odd name": {
            "tools": [{"type": "function", "function": {"name": 'a"}\n{{ x }}'}}],
            "tool_choice": "required",
        },
        "tool of odd schema": {
            "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}},
            ],
            "tool_choice": "required",
        },
        "top_logprobs of a billion": {"logprobs": True, "top_logprobs": 10**9},
        "kwargs of Python": {"chat_template_kwargs": {"__class__": 1, "self": 2, "messages": []}},
        "kwargs of tokenize": {"chat_template_kwargs": {"tokenize": True, "return_tensors": "pt"}},
        "documents of nothing": {"documents": [{}]},
    }
    for label, changed in chat.items():
        body = {**BODIES[CHAT], **changed}
        yield Case(f"chat: {label}", CHAT, encoded(body))
        yield Case(f"chat, streamed: {label}", CHAT, encoded({"stream": True, **body}))


def forms() -> Iterator[Case]:
    """Regular expressions, grammars and schemas that are wrong, endless, or costly to compile."""
    for backend in (None, "xgrammar", "guidance"):
        for label, form in {**_texts(), **_schemas()}.items():
            chosen = form if backend is None else {**form, "backend": backend}
            body = encoded({**BODIES[COMPLETION], "structured_outputs": chosen})
            yield Case(f"form: {label} ({backend or 'auto'})", COMPLETION, body)


def _texts() -> dict[str, dict[str, Any]]:
    return {
        "regex (a+)+$": {"regex": "(a+)+$"},
        "regex of nested counts": {"regex": "((a{1,100}){1,100}){1,100}"},
        "regex of many counts": {"regex": "(a{0,9}b{0,9}){1000}"},
        "regex of a billion": {"regex": "a{1000000000}"},
        "regex unclosed": {"regex": "(" * 1000},
        "regex of look-around": {"regex": "(?<=a)b(?!c)"},
        "regex of a back-reference": {"regex": r"(a)\1"},
        "regex empty": {"regex": ""},
        "regex of nothing": {"regex": "[^\\s\\S]"},
        "regex of 100 kB": {"regex": "a?" * 50_000},
        "regex of 2000 options": {"regex": "(?:a|)" * 2000},
        "grammar of 2000 options": {"grammar": "root ::= " + '"a"? ' * 2000},
        "grammar of 2000 empty rules": {
            "grammar": "root ::= " + "a " * 2000 + '\na ::= "b" | ""',
        },
        "json of a long pattern": {"json": {"type": "string", "pattern": "a?" * 20_000}},
        "regex of alternatives": {"regex": "|".join(f"a{i}b" for i in range(5000))},
        "grammar broken": {"grammar": "root ::= ::="},
        "grammar without root": {"grammar": 'a ::= "b"'},
        "grammar left-recursive": {"grammar": 'root ::= root "a" | root'},
        "grammar endless": {"grammar": "root ::= a\na ::= b\nb ::= a"},
        "grammar of many empties": {"grammar": 'root ::= a*\na ::= b*\nb ::= ""*'},
        "grammar of exponential size": {
            "grammar": "root ::= a0\n"
            + "\n".join(f"a{i} ::= a{i + 1} a{i + 1}" for i in range(40))
            + '\na40 ::= "x"'
        },
        "grammar of 200 kB": {"grammar": "root ::= " + '"a" | ' * 30_000 + '"b"'},
        "grammar of brackets": {"grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
        "grammar binary": {"grammar": "\0\x01\x02"},
        "grammar of empty lines": {"grammar": "\n" * 120_000 + "x"},
        "grammar of escaped quotes": {"grammar": 'root ::= "' + '\\"' * 60_000 + "\n"},
        "grammar of 7000 rules in a row": {
            "grammar": "start: a0\n"
            + "\n".join(f"a{i}: a{i + 1}" for i in range(7000))
            + '\na7000: "x"'
        },
        "choice none": {"choice": []},
        "choice empty": {"choice": [""]},
        "choice of numbers": {"choice": [1, 2]},
        "choice of 5000": {"choice": [f"choice number {i}" for i in range(5000)]},
        "choice of 1 MB": {"choice": ["a" * 2**20]},
    }


def _schemas() -> dict[str, dict[str, Any]]:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    wide = {f"p{i}": {"type": "string"} for i in range(2000)}
    return {
        "json broken": {"json": "{"},
        "json null": {"json": "null"},
        "json false": {"json": {"not": {}}},
        "json of unknown type": {"json": {"type": "nonsense"}},
        "json of itself": {"json": {"$ref": "#"}},
        "json of no such part": {"json": {"$ref": "#/definitions/nothing"}},
        "json of a URL": {"json": {"$ref": "http://127.0.0.1:9/schema.json"}},
        "json of a file": {"json": {"$ref": "file:///etc/passwd"}},
        "json of a circle": {
            "json": {
                "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                "$ref": "#/$defs/a",
            }
        },
        "json 300 deep": {"json": deep},
        "json 2000 wide": {"json": {"type": "object", "properties": wide}},
        "json of all required": {
            "json": {"type": "object", "properties": wide, "required": list(wide)}
        },
        "json of contradictions": {"json": {"type": "integer", "minimum": 5, "maximum": 1}},
        "json of evil pattern": {"json": {"type": "string", "pattern": "(a|a)*" * 20}},
        "json of huge counts": {"json": {"type": "string", "minLength": 10**9}},
        "json of huge arrays": {"json": {"type": "array", "minItems": 10**9, "items": {}}},
        "json of negative counts": {"json": {"type": "array", "minItems": -1}},
        "json of huge numbers": {"json": {"type": "integer", "minimum": HUGE // 10**300}},
        "json of many kinds": {
            "json": {"anyOf": [{"const": f"value {i}"} for i in range(3000)]},
        },
        "json of unicode": {"json": {"type": "object", "properties": {"\u202e\0": {}}}},
        "json of all kinds of nothing": {"json": {"anyOf": []}},
        "json enum empty": {"json": {"enum": []}},
        "two at once": {"json": {}, "regex": "a"},
        "of nothing": {},
        "unknown kind": {"poem": True},
        "unknown backend": {"regex": "a", "backend": "nonsense"},
        "json of 3000 references in a row": {
            "json": {
                "$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(3000)},
                "$ref": "#/$defs/a0",
            }
        },
        "json of a deep pattern": {
            "json": {"type": "string", "pattern": "(" * 60_000 + "a" + ")" * 60_000}
        },
        "json of types that are none": {"json": {"type": [{}], "enum": {}, "$ref": 5}},
        "json of one part 3000 times": {
            "json": {"$defs": {"x": wide}, "oneOf": [{"$ref": "#/$defs/x"}] * 3000}
        },
        "tag of schemas that are none": {
            "structural_tag": {
                "structures": [{"begin": "<", "schema": "[" * 5000, "end": ">"}, 5],
                "triggers": ["<"],
            }
        },
        "tag broken": {"structural_tag": "{"},
        "tag empty": {"structural_tag": {}},
        "tag of nothing": {"structural_tag": {"type": "structural_tag", "format": {}}},
        "json_object false": {"json_object": False},
    }


# Each asks for far more work, memory or access than a prompt may take.
TEMPLATES: Mapping[str, str] = {
    "broken": "{% for",
    "unknown filter": "{{ messages | nonsense }}",
    "unknown test": "{{ 1 is nonsense }}",
    "raises": "{{ raise_exception('no') }}",
    "divides": "{{ 1 / 0 }}",
    "undefined": "{{ a.b.c.d }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "attr": "{{ messages | attr('__class__') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
    "extends": "{% extends 'base' %}",
    "changes its input": "{{ messages.append(1) }}",
    "range": "{{ range(10**9) | list }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for a in range(9999) %}{% for b in range(9999) %}ab{% endfor %}"
    "{% endfor %}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "product": "{{ 'a' * 10 ** 10 }}",
    "list product": "{{ [0] * 10 ** 10 }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "percent filter": "{{ '%10000000000d' | format(1) }}",
    "format width": "{{ '{:10000000000}'.format(1) }}",
    "shift": "{{ (2 ** 100000) ** 100000 }}",
    "indent": "{{ 'a\n' * 1000 | indent(10 ** 9) }}",
    "lipsum": "{{ lipsum(n=100000000) }}",
    "recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "doubling": "{% set ns = namespace(a='a') %}{% for i in range(60) %}"
    "{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}",
    "doubling join": "{% set ns = namespace(a='aa') %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] | join %}{% endfor %}{{ ns.a }}",
    "batch": "{{ [1] | batch(10 ** 9, 0) | list }}",
    "slice": "{{ [1] | slice(10 ** 9) | list }}",
    "deep brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "deep blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "long": "{{ 1 }}" * 100_000,
    "empty": "",
    "surrogate": "{{ '\\ud800' }}",
    "nothing": " ",
    "strftime": "{{ strftime_now('%' * 100000) }}",
    "strftime nul": "{{ strftime_now('\\0') }}",
    "tojson": "{{ messages | tojson(indent=10 ** 9) }}",
    "tojson of all": "{{ self | tojson }}",
    "generation": "{% generation %}a{% endgeneration %}",
}


def templates() -> Iterator[Case]:
    for label, template in TEMPLATES.items():
        body = encoded({**BODIES[CHAT], "chat_template": template})
        yield Case(f"template: {label}", CHAT, body)
