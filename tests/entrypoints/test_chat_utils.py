import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from vllm.entrypoints.chat_utils import detect_content_format, load_chat_template, render_chat
from vllm.errors import BadRequest, ConfigError, NotAvailable

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


def test_content_format_is_read_off_the_template(tokenizer):
    assert detect_content_format(tokenizer, STRING_TEMPLATE) == "string"
    assert detect_content_format(tokenizer, PARTS_TEMPLATE) == "openai"


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
