"""Config files as they come: what is wrong with one is said with its name and line, before the parser reads it."""

from __future__ import annotations

import locale
import os
import threading
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcoref.errors import UserError
from mmcoref.run.config_files import Names, check_config, suggestion

NAMES = Names(
    frozenset({"model.lr", "model.lora_rank", "data.path", "trainer.logger", "trainer.callbacks", "seed_everything"}),
    frozenset({"model", "data", "trainer"}),
)
KOREAN = "data:\n  path: 대화.json\n"
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)) + "model: *a8\n"


def refusal(content: str | bytes, name: str = "q.yaml", section: str | None = None) -> str:
    """What is said of a file with this content."""
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        check_config(name, NAMES, section)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("model:\n  lr: 1\ndata:\n  path: x\nmodel:\n  lora_rank: 2\n", "q.yaml, line 5: model is given twice, first in line 1; keep one."),
        ("model:\n  lr: 1\n  lr: 2\n", "q.yaml, line 3: lr is given twice, first in line 2; keep one."),
        ('model: {lora_rank: 1,\n "lora_rank": 2}\n', "q.yaml, line 2: lora_rank is given twice, first in line 1; keep one."),
        ("trainer:\n  logger:\n    init_args: {a: 1, a: 2}\n", "q.yaml, line 3: a is given twice, first in line 3; keep one."),
        ("data:\nmodel:\n  lr: 1\n", "q.yaml, line 1: data: expected settings, got nothing; leave the section out, or give it some."),
        ("model: null\n", "q.yaml, line 1: model: expected settings, got nothing; leave the section out, or give it some."),
        ("model: [lr]\n", "q.yaml, line 1: model: expected settings, got a list; leave the section out, or give it some."),
        ("", "q.yaml: expected sections such as `model:` or `data:`, got nothing."),
        ("# all of it\n# is a comment\n", "q.yaml: expected sections such as `model:` or `data:`, got nothing."),
        ("- model\n", "q.yaml: expected sections such as `model:` or `data:`, got a list."),
        ("hello\n", "q.yaml: expected sections such as `model:` or `data:`, got a single value."),
        ("model:\n\tlr: 1\n", "q.yaml, line 2: it is indented with a tab, and YAML takes spaces only."),
        ("model: {lr: 1\n", "q.yaml, line 2: not valid YAML: did not find expected ',' or '}'."),
        ("# Title\n\nText: with: colons\n", "q.yaml, line 3: not valid YAML: mapping values are not allowed in this context."),
        ("model: {lr: 1}\n---\nmodel: {lr: 2}\n", "q.yaml, line 2: not valid YAML: found another document."),
        ("model:\n  lrr: 1\n", "q.yaml, line 2: model.lrr: no such setting; did you mean model.lr?"),
        ("modell:\n  lr: 1\n", "q.yaml, line 1: modell: no such setting; did you mean model?"),
        ("lr: 1\n", "q.yaml, line 1: lr: no such setting; did you mean model.lr?"),
        ("model:\n  zzz: 1\n", "q.yaml, line 2: model.zzz: no such setting."),
        ("model:\n  1: 2\n", "q.yaml, line 2: expected the name of a setting, got 1."),
        ("model: &m\n  lr: *m\n", "q.yaml, line 1: a value contains itself, by its alias."),
        ("model: " + "[" * 600 + "]" * 600, "q.yaml: it is nested too deeply."),
        (KOREAN.encode("cp949"), "q.yaml, line 2: expected UTF-8, got byte 0xb4 (the file can be read as CP949, as Korean Windows writes"),
        (KOREAN.encode("utf-16"), "q.yaml: expected UTF-8, got UTF-16; save it as UTF-8."),
        (KOREAN.encode("utf-16-be"), "q.yaml, line 2: expected UTF-8, got byte 0xb3; save it as UTF-8."),
        (b"model:\n  lr: 1 \x80\n", "q.yaml, line 2: expected UTF-8, got byte 0x80; save it as UTF-8."),
        (b"model:\n  lr: 1\n\x00", "q.yaml: not valid YAML: unacceptable character #x0000"),
    ],
)
def test_what_is_wrong_with_a_config_is_said_with_its_line(content: str | bytes, sentence: str) -> None:
    assert refusal(content).startswith(sentence)


def test_aliases_that_unfold_without_end_are_counted_not_unfolded() -> None:
    assert refusal(BOMB).startswith("q.yaml: its aliases (*name) unfold into 285,857,131 values")


def test_a_section_of_its_own_is_a_file_of_settings() -> None:
    assert refusal("lr: 1\nlr: 2\n", section="model") == "q.yaml, line 2: lr is given twice, first in line 1; keep one."
    assert refusal("lrr: 2\n", section="model") == "q.yaml, line 1: model.lrr: no such setting; did you mean model.lr?"
    assert refusal("- 1\n", section="model") == "q.yaml: expected settings, one a line, got a list."
    check_config("{lr: 1}", NAMES, "model")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("no.yaml", "--config no.yaml: no such file."),
        ("quart.yaml", "--config quart.yaml: no such file. Did you mean quarts.yaml?"),
        ("folder", "--config folder: expected a file, got a folder; name the file in it."),
        ("", "--config: expected a file, got an empty text."),
        ("x\0y", "--config x\\x00y: not valid YAML"),
        ("x" * 5000, f"--config {'x' * 60}…: no such file."),
        ("model: {lr: 1, lr: 2}", "--config model: {lr: 1, lr: 2}, line 1: lr is given twice"),
    ],
)
def test_a_config_that_is_no_file(value: str, sentence: str) -> None:
    Path("quarts.yaml").write_text("model: {lr: 1}\n", "utf-8")
    Path("folder").mkdir()
    with pytest.raises(UserError) as caught:
        check_config(value, NAMES)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    "content",
    [
        "model:\n  lr: 1\n",
        "\ufeffmodel:\r\n  lr: 1\r\n",
        '{"model": {"lr": 0.5}, "seed_everything": 3}',
        "model: model.yaml\n",
        "config: other.yaml\n",
        "trainer:\n  logger:\n    class_path: CSVLogger\n    init_args:\n      save_dir: x\n  callbacks+:\n  - class_path: Timer\n",
        "model: &m {lr: 1}\n",
        "model:\n  <<: {lr: 1}\n  lora_rank: 2\n",
        "model.lr: 1\n",
        KOREAN,
    ],
)
def test_a_whole_config_passes(content: str) -> None:
    Path("q.yaml").write_text(content, "utf-8")
    check_config("q.yaml", NAMES)


def test_a_pipe_is_read_once_and_checked_as_a_file() -> None:
    os.mkfifo("pipe")
    for text in (KOREAN, "model: {lr: 1, lr: 2}\n"):
        writer = threading.Thread(target=Path("pipe").write_text, args=(text, "utf-8"))
        writer.start()
        if text == KOREAN:
            assert check_config("pipe", NAMES) == KOREAN
        else:
            with pytest.raises(UserError, match="pipe, line 1: lr is given twice"):
                check_config("pipe", NAMES)
        writer.join()
    with pytest.raises(UserError, match="--config /dev/zero: expected a file, got a device"):
        check_config("/dev/zero", NAMES)
    assert check_config("-", NAMES) == "-"


def test_a_config_is_utf_8_whatever_the_locale_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("q.yaml").write_text("\ufeff" + KOREAN, "utf-8")
    assert check_config("q.yaml", NAMES) == "q.yaml"
    monkeypatch.setattr(locale, "getencoding", lambda: "cp949")
    assert check_config("q.yaml", NAMES) == KOREAN
    Path("q.yaml").write_text("model: {lr: 1}\n", "utf-8")
    assert check_config("q.yaml", NAMES) == "q.yaml"


@settings(max_examples=60, deadline=None)
@given(values=st.dictionaries(st.sampled_from(sorted(NAMES.settings)), st.integers() | st.text() | st.none(), min_size=1))
def test_what_yaml_writes_of_known_settings_passes(values: dict[str, object]) -> None:
    sections: dict[str, object] = {}
    for name, value in values.items():
        section, dot, rest = name.partition(".")
        if dot:
            sections.setdefault(section, {})[rest] = value  # type: ignore[index]
        else:
            sections[name] = value
    check_config(yaml.safe_dump(sections, allow_unicode=True), NAMES)


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=60) | st.text("model: lr\n\t{}[]&*a#'\"-", max_size=60).map(str.encode))
def test_any_bytes_pass_or_are_refused_in_a_sentence(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    message = ""
    try:
        check_config(str(file), NAMES)
    except UserError as error:
        message = str(error)
    assert "\n" not in message.replace(str(file), "")


def test_a_suggestion_needs_a_likeness() -> None:
    assert suggestion("model.lrr", ["model.lr", "data.path"], "--") == "; did you mean --model.lr?"
    assert suggestion("path", ["model.lr", "data.path"]) == "; did you mean data.path?"
    assert suggestion("zzz", ["model.lr", "data.path"]) == "."
