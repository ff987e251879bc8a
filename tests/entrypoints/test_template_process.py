from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vllm.entrypoints.openai.admission import Overloaded
from vllm.entrypoints.template_process import TemplateProcess
from vllm.errors import BadRequest

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def templates() -> Iterator[TemplateProcess]:
    process = TemplateProcess({"eos_token": "</s>"}, budget_s=1.0)
    yield process
    process.close()


def render(templates: TemplateProcess, template: str, **arguments: Any) -> str:
    return templates.render(messages=HELLO, chat_template=template, **arguments)


def test_a_template_sees_messages_special_tokens_and_arguments(templates):
    template = "{{ messages[0].content }}{{ eos_token }}{{ mood }}"
    assert render(templates, template, chat_template_kwargs={"mood": "!"}) == "hi</s>!"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'x' * 3000000000 }}", "takes too much memory"),
        ("{{ '%2000000000d'|format(1) }}", "takes too much memory"),
        (ENDLESS, "seconds"),
        ("{% if %}", "Expected an expression"),
        ("{{ raise_exception('not like this') }}", "not like this"),
        ("{{ range(10000000000) | list }}", "ange"),
        ("{{ '\\ud83d' }}", "the prompt that the chat template makes is not valid Unicode"),
        ("{{ raise_exception('no \\ud83d') }}", r"no \\ud83d"),
        ("tool_use", "nor the name of one"),
    ],
)
def test_a_template_that_is_wrong_or_greedy_is_refused_and_the_next_one_works(
    templates, template, reason
):
    with pytest.raises(BadRequest, match=reason):
        render(templates, template)
    assert render(templates, "{{ 'ok' }}") == "ok"


def test_a_process_that_a_template_ends_is_told_as_that_and_replaced(templates):
    assert render(templates, "{{ 'ok' }}") == "ok"
    process = templates._process
    assert process is not None
    process.kill()
    process.join()
    with pytest.raises(BadRequest, match="ended the process that renders templates"):
        render(templates, "{{ 'ok' }}")
    assert render(templates, "{{ 'ok' }}") == "ok"


def test_numbers_of_any_size_reach_a_template(templates):
    kwargs = {"big": 2**70, "small": -0.5, "none": None}
    text = render(templates, "{{ big }} {{ small }} {{ none }}", chat_template_kwargs=kwargs)
    assert text == f"{2**70} -0.5 None"


def test_nobody_waits_for_more_than_one_slow_template(templates):
    def slow() -> str:
        try:
            return render(templates, ENDLESS)
        except (BadRequest, Overloaded) as error:
            return type(error).__name__

    with ThreadPoolExecutor(4) as threads:
        ends = [end.result() for end in [threads.submit(slow) for _ in range(4)]]
    assert set(ends) == {"BadRequest", "Overloaded"}
    assert render(templates, "{{ 'ok' }}") == "ok"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% set _ = messages.append(1) %}{{ messages | length }}",
    ],
)
def test_a_template_cannot_reach_python_or_change_what_it_is_given(templates, template):
    try:
        text = render(templates, template)
    except BadRequest:
        return
    assert text in ("", "1")
