import copy
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from vllm.entrypoints.chat_utils import load_chat_template, reads, render_chat
from vllm.errors import BadRequest, ConfigError, NotAvailable
from vllm.transformers_utils.tokenizer import load_tokenizer

STRING_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PARTS_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    "</{{ m.role }}>{% endfor %}"
)
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")),
        chat_template=STRING_TEMPLATE,
    )


def test_generation_prompt_opens_the_assistant_turn(tokenizer):
    assert render_chat(tokenizer, [USER]) == "<user>hi</user><assistant>"
    assert render_chat(tokenizer, [USER], add_generation_prompt=False) == "<user>hi</user>"


def test_text_parts_become_one_string_for_a_string_template(tokenizer):
    parts = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}]
    prompt = render_chat(tokenizer, [{"role": "user", "content": parts}])
    assert prompt == "<user>one\ntwo</user><assistant>"


def test_string_becomes_a_part_for_a_template_that_reads_parts(tokenizer):
    assert render_chat(tokenizer, [USER], chat_template=PARTS_TEMPLATE) == "<user>hi</user>"


BOTH_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}"
    "{% endfor %}"
)
# Strings of the system, both of everybody else.
SYSTEM_TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '/' }}"
    "{% set messages = messages[1:] %}{% endif %}"
) + BOTH_TEMPLATE
FIRST_PART_TEMPLATE = (
    "{% for m in messages %}"
    "{{ m.content if m.content is string else m.content[0].text }}"
    "{% endfor %}"
)
ONE_TWO = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}]


@pytest.mark.parametrize(
    ("template", "formats"),
    [
        (STRING_TEMPLATE, {"string"}),
        (PARTS_TEMPLATE, {"openai"}),
        (BOTH_TEMPLATE, {"string", "openai"}),
        (FIRST_PART_TEMPLATE, {"string"}),
        ("{{ messages | tojson }}", {"string"}),
        ("{{ raise_exception('no') }}", set()),
    ],
)
def test_content_formats_are_read_off_the_template(tokenizer, template, formats):
    for role in ("user", "assistant", "tool", "system"):
        found = {f for f in ("string", "openai") if reads(tokenizer, template, role, f)}
        assert found == formats, role


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (STRING_TEMPLATE, "<user>one\ntwo</user><assistant>"),
        (PARTS_TEMPLATE, "<user>onetwo</user>"),
        (BOTH_TEMPLATE, "<user>[one][two]"),
        (FIRST_PART_TEMPLATE, "one\ntwo"),
    ],
)
def test_a_list_is_what_the_template_makes_of_it(tokenizer, template, expected):
    messages = [{"role": "user", "content": ONE_TWO}]
    assert render_chat(tokenizer, messages, chat_template=template) == expected


def test_each_message_keeps_the_form_it_has_if_the_template_reads_that(tokenizer):
    system, answer = (
        {"role": role, "content": ONE_TWO if role == "system" else "fine"}
        for role in ("system", "assistant")
    )
    messages = [system, {"role": "user", "content": ONE_TWO}, answer, USER]
    prompt = render_chat(tokenizer, messages, chat_template=SYSTEM_TEMPLATE)
    assert prompt == "one\ntwo/<user>[one][two]<assistant>fine<user>hi"
    forced = render_chat(
        tokenizer, messages, chat_template=SYSTEM_TEMPLATE, content_format="string"
    )
    assert forced == "one\ntwo/<user>one\ntwo<assistant>fine<user>hi"


def test_the_shipped_template_reads_lists():
    story = Path(__file__).parents[2] / "examples" / "models" / "tiny-story"
    tokenizer = load_tokenizer(story)
    messages = [{"role": "system", "content": ONE_TWO}, {"role": "user", "content": ONE_TWO}]
    prompt = render_chat(tokenizer, messages, add_generation_prompt=False)
    assert prompt.count("onetwo") == 2


def test_the_last_of_several_parts_is_continued(tokenizer):
    messages = [USER, {"role": "assistant", "content": ONE_TWO}]
    prompt = render_chat(
        tokenizer,
        messages,
        chat_template=BOTH_TEMPLATE,
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert prompt == "<user>hi<assistant>[one][two"


def test_a_template_may_be_named_where_the_tokenizer_has_several(tokenizer):
    several = copy.deepcopy(tokenizer)
    several.chat_template = {"default": "{{ 'plain' }}", "tool_use": "{{ 'tools' }}"}
    assert render_chat(several, [USER], chat_template="tool_use") == "tools"
    assert render_chat(several, [USER], tools=[{"type": "function"}]) == "tools"
    assert render_chat(several, [USER]) == "plain"
    with pytest.raises(BadRequest, match="it has: default, tool_use") as caught:
        render_chat(several, [USER], chat_template="tools_use")
    assert caught.value.param == "chat_template"
    with pytest.raises(BadRequest, match="it has: default"):
        render_chat(tokenizer, [USER], chat_template="tool_use")
    several.chat_template = {"rag": "{{ 'rag' }}"}
    with pytest.raises(NotAvailable, match="name one of its templates as chat_template: rag"):
        render_chat(several, [USER])


def test_what_a_template_makes_must_be_text(tokenizer):
    with pytest.raises(BadRequest, match="lone surrogate at character 1") as caught:
        render_chat(tokenizer, [USER], chat_template="{{ 'a\\ud83d' }}")
    assert caught.value.param == "chat_template"
    with pytest.raises(BadRequest) as caught:
        render_chat(tokenizer, [USER], chat_template="{{ raise_exception('\\ud83d') }}")
    assert str(caught.value).encode()


@pytest.mark.parametrize("template", [STRING_TEMPLATE, None])
def test_final_message_is_continued_not_closed(tokenizer, template):
    messages = [USER, {"role": "assistant", "content": "Once upon"}]
    prompt = render_chat(
        tokenizer,
        messages,
        chat_template=template,
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert prompt == "<user>hi</user><assistant>Once upon"


@pytest.mark.parametrize("content", ["Once upon", None])
def test_calls_are_not_lost_behind_a_text_that_is_continued(tokenizer, content):
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [USER, {"role": "assistant", "content": content, "tool_calls": [call]}]
    with pytest.raises(BadRequest, match="leave them out, or answer them") as caught:
        render_chat(tokenizer, messages, add_generation_prompt=False, continue_final_message=True)
    assert caught.value.param == "messages[1].tool_calls"
    messages[1]["tool_calls"] = []
    messages[1]["content"] = "Once upon"
    prompt = render_chat(
        tokenizer, messages, add_generation_prompt=False, continue_final_message=True
    )
    assert prompt.endswith("Once upon")


def test_template_kwargs_reach_the_template(tokenizer):
    template = "{{ mood }}: {{ messages[0].content }}"
    prompt = render_chat(
        tokenizer, [USER], chat_template=template, chat_template_kwargs={"mood": "calm"}
    )
    assert prompt == "calm: hi"


def test_arguments_of_earlier_tool_calls_reach_the_template_parsed(tokenizer):
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 3}'}}
    prompt = render_chat(
        tokenizer,
        [USER, {"role": "assistant", "tool_calls": [call]}],
        chat_template="{{ messages[1].tool_calls[0].function.arguments.x + 1 }}",
    )
    assert prompt == "4"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (["hi"], "messages"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
    ],
)
def test_a_wrong_message_is_refused_by_name(tokenizer, messages, param):
    with pytest.raises(BadRequest) as caught:
        render_chat(tokenizer, messages)
    assert caught.value.param == param


def test_a_template_that_raises_is_a_bad_request(tokenizer):
    with pytest.raises(BadRequest, match="roles must alternate"):
        render_chat(
            tokenizer, [USER], chat_template="{{ raise_exception('roles must alternate') }}"
        )


def test_a_template_cannot_leave_the_sandbox(tokenizer):
    with pytest.raises(BadRequest, match="unsafe"):
        render_chat(
            tokenizer, [USER], chat_template="{{ messages.__class__.__mro__[1].__subclasses__() }}"
        )


def test_template_kwargs_cannot_replace_the_template(tokenizer):
    with pytest.raises(BadRequest, match="chat_template"):
        render_chat(tokenizer, [USER], chat_template_kwargs={"chat_template": "x"})


def test_a_model_without_template_says_how_to_give_one():
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    )
    with pytest.raises(NotAvailable, match="--chat-template"):
        render_chat(bare, [USER])


def test_a_template_is_taken_literally_or_from_a_file(tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    assert load_chat_template(str(tmp_path / "t.jinja")) == "{{ messages }}"
    assert load_chat_template("{{ x }}") == "{{ x }}"
    assert load_chat_template(None) is None
    with pytest.raises(ConfigError, match="--chat-template"):
        load_chat_template("no/such/file")
