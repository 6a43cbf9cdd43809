"""Chat templates are programs of somebody else's: the same on every day, bounded, and refused in one sentence."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from mmcoref.data import template as template_file
from mmcoref.data.encode import Encoder
from mmcoref.data.record import Record
from mmcoref.data.template import ChatTemplate
from mmcoref.errors import UserError
from tests.data.test_encode import instruct

CHAT = [{"role": "user", "content": "Q"}]
CONTENT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
LOOP = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
DOUBLE = "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"


def chat(tokenizer: PreTrainedTokenizerFast, template: str) -> ChatTemplate:
    return ChatTemplate(instruct(tokenizer, template))


def refusal(tokenizer: PreTrainedTokenizerFast, template: str) -> str:
    with pytest.raises(UserError) as caught:
        Encoder(instruct(tokenizer, template), style="chat")
    message = str(caught.value)
    assert message.startswith("data.prompt: chat: this tokenizer's chat template ")
    assert message.endswith("; use --data.prompt base, or another model.")
    assert "\n" not in message
    return message.removeprefix("data.prompt: chat: this tokenizer's chat template ").partition("; use")[0]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Later:
            return cls(2031, 5, 17, 3, 4, 5)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    chat_template_utils._compile_jinja_template.cache_clear()


@pytest.mark.usefixtures("later")
def test_the_clock_stands_still_for_every_part_of_a_date(tokenizer: PreTrainedTokenizerFast) -> None:
    at = datetime(2024, 7, 26)
    formats = [f"%{letter}" for letter in "aAbBcCdDeFgGhHIjmMpPrRSTuUVwWxXyYzZ%f"]
    formats += [f"%-{letter}" for letter in "dmHIMSjYB"] + ["%d %B, %Y", "100%% am %A", "", "kein Datum", "%"]
    template = "".join(f"{{{{ strftime_now({one!r}) }}}}|" for one in formats)
    clock = instruct(tokenizer, template).apply_chat_template(CHAT, tokenize=False)
    assert "2031" in clock  # the template does read the clock
    # A single % at the end is the C library's business, and no date.
    assert chat(tokenizer, template).render(CHAT).split("|")[:-2] == [at.strftime(one) for one in formats[:-1]]


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize(
    "template",
    [
        "{% macro header(role) %}<{{ role }} {{ strftime_now('%Y') }}>{% endmacro %}{{ header('user') }}" + CONTENT,
        "{% for message in messages %}{{ strftime_now('%Y') }}{{ message['content'] }}{% endfor %}",
        "{% if strftime_now is defined %}{% set day = strftime_now(format='%Y') %}{% else %}?{% endif %}{{ day }}" + CONTENT,
        "{% set year = strftime_now('%Y') | int + 0 %}{{ year }}" + CONTENT,
    ],
)
def test_a_date_is_the_same_wherever_a_template_asks_for_it(template: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert "2031" in instruct(tokenizer, template).apply_chat_template(CHAT, tokenize=False)
    assert "2024" in chat(tokenizer, template).render(CHAT)


@pytest.mark.parametrize("start", ["\n\n  x", "{# a comment #}\n", "{%- if true -%}\n x{%- endif %}", "{{- bos_token }}\n"])
def test_a_template_that_asks_for_no_date_is_rendered_as_transformers_does(start: str, tokenizer: PreTrainedTokenizerFast) -> None:
    template = start + CONTENT + "{% if false %}{{ strftime_now('%Y') }}{% endif %}"
    theirs = instruct(tokenizer, template).apply_chat_template(CHAT, tokenize=False)
    assert chat(tokenizer, template).render(CHAT) == theirs


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('System role\nis required') }}", "cannot be rendered: System role"),
        ("{% for message in messages %}", "cannot be rendered: Unexpected end of template"),
        ("{{ messages[0]['content'] + 1 }}", "cannot be rendered: can only concatenate str"),
        ("{{ messages.nothing.more }}", "cannot be rendered: 'list object' has no attribute 'nothing'"),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered: access to attribute '__class__' of 'str' object is unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot be rendered: maximum recursion depth exceeded"),
        (CONTENT + "{{ range(200) | random }}", "writes another text each time"),
        (CONTENT + "{{ ['a', 'b'] | random }}", "writes another text each time"),
        (CONTENT + "{{ lipsum(1) }}", "writes another text each time"),
        (CONTENT + "{{ 'a' * 200000 }}", "makes 200,540 characters of a short dialogue"),
    ],
)
def test_a_template_that_raises_varies_or_swells_is_refused(template: str, said: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert said in refusal(tokenizer, template)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(CONTENT + LOOP, id="loops"),
        pytest.param(CONTENT + "{% set x = 'a' * 10 ** 11 %}", id="memory at once"),
        pytest.param(CONTENT + "{% set x = 9 ** (9 ** (9 ** 9)) %}", id="a power", marks=pytest.mark.slow),
        pytest.param(CONTENT + DOUBLE, id="memory by doubling", marks=pytest.mark.slow),
    ],
)
def test_a_template_without_end_is_ended(template: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_file, "_SECONDS", 1)
    assert refusal(tokenizer, template) == "takes more than 1 seconds or 1 GiB of memory for a short dialogue"


def test_a_template_that_fails_on_a_record_is_refused_then(tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...]) -> None:
    ends = "{% if add_generation_prompt %}{% else %}<|eot_id|>{% endif %}"
    swells = "{% if '## Problem' in messages[0]['content'] %}{{ 'a' * 100000 }}{% endif %}"
    raises = "{% if '## Problem' in messages[0]['content'] %}{{ raise_exception('no problems') }}{% endif %}"
    for template, said in ((swells, "makes 100,"), (raises, "cannot be rendered: no problems")):
        encoder = Encoder(instruct(tokenizer, template + CONTENT + ends), style="chat")
        with pytest.raises(UserError, match=said):
            encoder.render(dialogues[0])


def test_several_templates_without_a_default_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    several = instruct(tokenizer)
    several.chat_template = {"tools": CONTENT, "rag": CONTENT}  # type: ignore[assignment]
    with pytest.raises(UserError, match="chat template cannot be chosen: This model has multiple chat templates"):
        Encoder(several, style="chat")
