"""What models of each family write, by the name of the parser, and what it means."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Case(NamedTuple):
    text: str
    content: str = ""
    calls: tuple[tuple[str, Any], ...] = ()  # name, arguments as Python values


NESTED = {"a": [{"b": "}]{["}, [], {}], "c": {"d": None, "e": [1.5, -2e3, True, False]}}
ESCAPED = {"path": 'C:\\new\\"x"', "text": "line\nbreak\ttab", "code": "if (a) { return '[]'; }"}
UNICODE = {"città": "Zürich 東京 🌧️", "surrogate": "\U0001f600"}
SAMPLES = (("weather", {"city": "Paris"}), ("f", NESTED), ("f", ESCAPED), ("f", UNICODE))


def call(name: str, arguments: Any, key: str = "arguments", **options: Any) -> str:
    return json.dumps({"name": name, key: arguments}, **options)


def _hermes(name: str, arguments: Any, **options: Any) -> str:
    return f"<tool_call>\n{call(name, arguments, **options)}\n</tool_call>"


HERMES = [
    Case("Just text, a < b, {braces} and [lists].", "Just text, a < b, {braces} and [lists]."),
    *(Case(_hermes(*sample), calls=(sample,)) for sample in SAMPLES),
    *(Case(_hermes(*sample, ensure_ascii=False), calls=(sample,)) for sample in SAMPLES),
    Case(_hermes("f", {"x": 1}, indent=2), calls=(("f", {"x": 1}),)),
    Case(_hermes("f", {}), calls=(("f", {}),)),
    Case('<tool_call>{"name": "now"}</tool_call>', calls=(("now", {}),)),
    Case('<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>', calls=(("f", {"x": 1}),)),
    Case(f"Let me see.{_hermes('f', {'x': 1})}", content="Let me see.", calls=(("f", {"x": 1}),)),
    Case(
        _hermes("f", {"x": 1}) + _hermes("g", {"y": "2"}),
        calls=(("f", {"x": 1}), ("g", {"y": "2"})),
    ),
    Case("a <tool_cal b <tool_callx> <", "a <tool_cal b <tool_callx> <"),
    Case("<tool_call>not JSON</tool_call>", "<tool_call>not JSON</tool_call>"),
    Case('<tool_call>{"name": 1}</tool_call>', '<tool_call>{"name": 1}</tool_call>'),
    *(
        Case(text, text)
        for value in ("5", "[1]", "true", '"Paris"', '"[1]"')
        if (text := f'<tool_call>{{"name": "f", "arguments": {value}}}</tool_call>')
    ),
]
LLAMA = [
    Case("Plain text with {braces}.", "Plain text with {braces}."),
    *(Case(call(*sample, key="parameters"), calls=(sample,)) for sample in SAMPLES),
    *(
        Case("<|python_tag|>" + call(*sample, key="parameters"), calls=(sample,))
        for sample in SAMPLES
    ),
    Case(call("f", {"x": 1}), calls=(("f", {"x": 1}),)),
    Case(
        f"{call('f', {'x': 1}, 'parameters')}; {call('g', {}, 'parameters')}",
        calls=(("f", {"x": 1}), ("g", {})),
    ),
    Case('{"answer": 42}', '{"answer": 42}'),
    Case('{"name": "Alice", "age": 3}', '{"name": "Alice", "age": 3}'),
    Case('{"name": "f", "parameters": 5}', '{"name": "f", "parameters": 5}'),
    Case('{"name": "f", "parameters": null}', '{"name": "f", "parameters": null}'),
    Case('<|python_tag|>{"name": "now"}', calls=(("now", {}),)),
    Case(
        '{"type": "function", "name": "f", "parameters": {"x": 1}}',
        calls=(("f", {"x": 1}),),
    ),
    Case("{not JSON", "{not JSON"),
]
PYTHONIC = [
    Case("Plain text with [brackets].", "Plain text with [brackets]."),
    Case('[weather(city="Paris")]', calls=(("weather", {"city": "Paris"}),)),
    Case("[now()]", calls=(("now", {}),)),
    Case(
        "[f(a=[{'b': '}]{['}, [], {}], c={'d': None, 'e': [1.5, -2e3, True, False]})]",
        calls=(("f", NESTED),),
    ),
    Case(f"[f(**{'{}'})]", "[f(**{})]"),
    Case("[f(a=1), g(b='x, (y)')]", calls=(("f", {"a": 1}), ("g", {"b": "x, (y)"}))),
    Case(r"[f(a='it\'s', b='東京')]", calls=(("f", {"a": "it's", "b": "東京"}),)),
    Case("[a.b(x=true)]", calls=(("a.b", {"x": True}),)),
    Case(
        '[f(from="a", class=1, user-id=True, $top=2, 東京=[1])]',
        calls=(("f", {"from": "a", "class": 1, "user-id": True, "$top": 2, "東京": [1]}),),
    ),
    Case("[get-weather(x=1), a.b-c()]", calls=(("get-weather", {"x": 1}), ("a.b-c", {}))),
    Case('[f(a="one\ntwo\r\n\tthree")]', calls=(("f", {"a": "one\ntwo\r\n\tthree"}),)),
    Case('[f(a="""say "x"\n, )] it\'s""")]', calls=(("f", {"a": 'say "x"\n, )] it\'s'}),)),
    Case('[f(a="", b="""""")]', calls=(("f", {"a": "", "b": ""}),)),
    Case(
        r"[f(a=r'\d+', b='\u6771\x41\n', c='x' 'y')]",
        calls=(("f", {"a": r"\d+", "b": "東A\n", "c": "xy"}),),
    ),
    Case(
        "[f(a=(1, 2), b=(3), c=(), d={1: 'x', 'y': .5,}, e=0x1F, f=+1e3, g=-7, h=007)]",
        calls=(
            (
                "f",
                {
                    "a": [1, 2],
                    "b": 3,
                    "c": [],
                    "d": {"1": "x", "y": 0.5},
                    "e": 31,
                    "f": 1000.0,
                    "g": -7,
                    "h": 7,
                },
            ),
        ),
    ),
    *(
        Case(text, text)
        for text in (
            "[f(a=1, a=2)]",
            "[f(a=1+2)]",
            "[f(a=x)]",
            "[f(a={1, 2})]",
            "[f(a=1 b=2)]",
            "[f(a=b'x')]",
            "[f(a=1j)]",
            "[f(a=1e999)]",
            "[f (x) for x in y]",
            "[1] and it's so",
            "[see (1)]",
        )
    ),
    Case("[1, 2, 3]", "[1, 2, 3]"),
    Case("[f(x=g())]", "[f(x=g())]"),
    Case("[]", "[]"),
]
MISTRAL = [
    Case("Plain [TOOL_CALL] text.", "Plain [TOOL_CALL] text."),
    *(Case(f"[TOOL_CALLS][{call(*sample)}]", calls=(sample,)) for sample in SAMPLES),
    *(
        Case(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments)}", calls=((name, arguments),))
        for name, arguments in SAMPLES
    ),
    Case('[TOOL_CALLS]f{"x": 1}', calls=(("f", {"x": 1}),)),
    Case('[TOOL_CALLS]f[CALL_ID]a1B2c3D4e[ARGS]{"x": 1}', calls=(("f", {"x": 1}),)),
    Case(
        'Hm.[TOOL_CALLS]f[CALL_ID]1[ARGS]{}[TOOL_CALLS]g[CALL_ID]2[ARGS]{"y": 2}',
        content="Hm.",
        calls=(("f", {}), ("g", {"y": 2})),
    ),
    Case('[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "a1B2c3D4e"}]', calls=(("f", {}),)),
    Case(
        'Hm.[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"y": 2}}]',
        content="Hm.",
        calls=(("f", {}), ("g", {"y": 2})),
    ),
    Case('[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{}', calls=(("f", {"x": 1}), ("g", {}))),
]
GRANITE = [
    Case("Plain <|tool_ text.", "Plain <|tool_ text."),
    *(Case(f"<|tool_call|>[{call(*sample)}]", calls=(sample,)) for sample in SAMPLES),
    Case(
        f"<tool_call>[{call('f', {})}, {call('g', {'y': 2})}]",
        calls=(("f", {}), ("g", {"y": 2})),
    ),
    Case(f"<tool_call>\n{call('f', {})}\n</tool_call>", calls=(("f", {}),)),
]
GRANITE_20B = [
    Case("Plain text.", "Plain text."),
    *(Case(f"<function_call> {call(*sample)}", calls=(sample,)) for sample in SAMPLES),
    Case(
        f"<function_call> {call('f', {})}\n<function_call> {call('g', {})}",
        calls=(("f", {}), ("g", {})),
    ),
]


def _deepseek(*calls: tuple[str, Any], fenced: bool) -> str:
    written = "".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json.dumps(value)}\n```"
        "<｜tool▁call▁end｜>"
        if fenced
        else f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json.dumps(value)}<｜tool▁call▁end｜>"
        for name, value in calls
    )
    return f"<｜tool▁calls▁begin｜>{written}<｜tool▁calls▁end｜>"


def _deepseek_cases(fenced: bool) -> list[Case]:
    return [
        Case("Plain <｜tool▁ text.", "Plain <｜tool▁ text."),
        *(Case(_deepseek(sample, fenced=fenced), calls=(sample,)) for sample in SAMPLES),
        Case(_deepseek(("f", 5), fenced=fenced), _deepseek(("f", 5), fenced=fenced)),
        Case("So: " + _deepseek(*SAMPLES, fenced=fenced), content="So: ", calls=SAMPLES),
    ]


CORPUS: dict[str, list[Case]] = {
    "hermes": HERMES,
    "llama3_json": LLAMA,
    "pythonic": PYTHONIC,
    "llama4_pythonic": [
        *PYTHONIC,
        Case('<|python_start|>[f(a="x")]<|python_end|>', calls=(("f", {"a": "x"}),)),
    ],
    "mistral": MISTRAL,
    "granite": GRANITE,
    "granite-20b-fc": GRANITE_20B,
    "deepseek_v3": _deepseek_cases(fenced=True),
    "deepseek_v31": _deepseek_cases(fenced=False),
}
CASES = [(name, case) for name, cases in CORPUS.items() for case in cases]
