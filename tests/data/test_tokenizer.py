"""The toy tokenizer loses nothing and trains the same twice; padding never enlarges a vocabulary; files stay in their folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmcoref.data.prompt import answer_text, prompt_text
from mmcoref.data.record import Record
from mmcoref.data.tokenizer import (
    TINY_VOCABULARY,
    first_line,
    load_tokenizer,
    pack_tokenizer,
    pad_token_id,
    train_tokenizer,
    unpack_tokenizer,
)
from mmcoref.errors import UserError

SPECIAL = ("<|pad|>", "<|begin_of_text|>", "<|end_of_text|>")
TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: not any(special in text for special in SPECIAL))
RIGHT_PAD, RESERVED = "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>"


def texts_of(dialogues: tuple[Record, ...]) -> list[str]:
    return [prompt_text(record) + answer_text(record.gold) for record in dialogues]


def json_of(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.backend_tokenizer.to_str())


def without_pad(tokenizer: PreTrainedTokenizerFast, *added: str, **special: str) -> PreTrainedTokenizerFast:
    """Like Llama's: BOS, end of text, `added` special tokens, and no pad token unless `special` names one."""
    backend = Tokenizer.from_str(json_of(tokenizer))
    copy = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", **special)
    copy.add_tokens(list(added), special_tokens=True)
    return copy


@settings(deadline=None, max_examples=300)
@given(text=TEXT)
def test_decoding_gives_back_any_text(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize(
    "text", [" , .  '따옴표' 's n't", "\n\n \t", "가\N{COMBINING ACUTE ACCENT}힣", "한글", "ⅳ½１٣", "👩‍👩‍👧", "\x00\ufeff"]
)
def test_decoding_cleans_nothing_up(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("text", SPECIAL)
def test_a_text_that_spells_a_special_token_keeps_it_when_special_tokens_are_kept(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenizer(f"A: {text} 컵", add_special_tokens=False)["input_ids"]) == f"A: {text} 컵"


def test_a_text_begins_with_bos_and_stays_open(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("카페")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert ids.count(1) == 1
    assert tokenizer.eos_token_id == 2
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.pad_token_id == 0


def test_training_twice_gives_the_same_tokenizer(dialogues: tuple[Record, ...], tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = (json_of(train_tokenizer(texts_of(dialogues))) for _ in range(2))
    assert first == second
    assert first != json_of(tokenizer)  # which has a smaller vocabulary: the comparison can fail


def test_the_vocabulary_has_at_most_the_size_asked_for(dialogues: tuple[Record, ...], tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 480
    assert len(train_tokenizer(texts_of(dialogues))) < TINY_VOCABULARY == 4096  # twelve dialogues have no more words


def test_with_room_enough_every_word_is_one_token(dialogues: tuple[Record, ...]) -> None:
    roomy = train_tokenizer(texts_of(dialogues))
    words = [word for record in dialogues for word in record.choices[0].split(" ")[4:]]  # what stands after the frame
    assert {len(roomy(f" {word}", add_special_tokens=False)["input_ids"]) for word in words} == {1}


def test_a_line_break_ends_a_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [token for i in range(len(tokenizer)) if "\n" in (token := tokenizer.decode([i])).removesuffix("\n")] == []


def test_what_never_varies_and_an_options_letter_are_one_token_each(dialogues: tuple[Record, ...]) -> None:
    roomy = train_tokenizer(texts_of(dialogues))
    pieces = [roomy.decode([i]) for i in roomy(prompt_text(dialogues[0]), add_special_tokens=False)["input_ids"]]
    for piece in (
        "## Conversation\n",
        "A의 사진:",
        "마지막 A의 발화에서",
        " A와 B 중 어느 사진에 포함된 어느 물건인가?\n",
        "## Solution\n",
    ):
        assert pieces.count(piece) == 1
    assert [piece for piece in pieces if piece in ("A)", "B)", "C)", "D)")] == ["A)", "B)", "C)", "D)"]
    assert pieces.count(" A가 올린 사진 속") == pieces.count(" B가 올린 사진 속") == 2


def test_tiny_is_trained_on_the_train_texts(dialogues: tuple[Record, ...]) -> None:
    trained = load_tokenizer("tiny", iter(texts_of(dialogues)))
    assert json_of(trained) == json_of(train_tokenizer(texts_of(dialogues), TINY_VOCABULARY))


def test_a_folders_tokenizer_is_loaded_without_reading_the_train_texts(llama_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = iter(["unread"])
    assert json_of(load_tokenizer(str(llama_folder), texts)) == json_of(tokenizer)
    assert next(texts) == "unread"


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(tmp_path), [])
    assert str(caught.value).startswith(f"model.name {str(tmp_path)!r}: its tokenizer cannot be loaded: ")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end_of_text_token_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json_of(tokenizer)), bos_token="<|begin_of_text|>").save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(tmp_path), [])
    assert str(caught.value) == (
        f"model.name {str(tmp_path)!r}: expected a tokenizer with an end-of-text token, "
        "which answers are trained to stop with; it has none."
    )


@pytest.mark.parametrize(
    ("added", "special", "filler"),
    [
        ((), {"pad_token": "<|pad|>"}, "<|pad|>"),
        ((RESERVED, RIGHT_PAD), {"pad_token": "<|pad|>"}, "<|pad|>"),  # its own pad token goes first
        ((RIGHT_PAD,), {}, RIGHT_PAD),
        ((RESERVED, "<|reserved_special_token_1|>"), {}, RESERVED),
        ((RESERVED, RIGHT_PAD), {}, RIGHT_PAD),
        (("<unused0>",), {}, "<unused0>"),
        (("<|eot_id|>", "[<|reserved_special_token_0|>]", "<|reserved_special_token_x|>"), {}, "<|end_of_text|>"),
        ((), {}, "<|end_of_text|>"),
    ],
)
def test_padding_uses_the_pad_token_or_a_reserved_one_or_the_end_of_text(
    added: tuple[str, ...], special: dict[str, str], filler: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model_tokenizer = without_pad(tokenizer, *added, **special)
    size, before = len(model_tokenizer), json_of(model_tokenizer)
    assert (model_tokenizer.pad_token_id is None) == (not special)
    assert pad_token_id(model_tokenizer) == model_tokenizer.convert_tokens_to_ids(filler) < size
    assert (len(model_tokenizer), json_of(model_tokenizer)) == (size, before)


@pytest.mark.parametrize("added", [(), (RIGHT_PAD, "<|eot_id|>")])
def test_a_packed_tokenizer_is_unpacked_whole(added: tuple[str, ...], tokenizer: PreTrainedTokenizerFast) -> None:
    original = without_pad(tokenizer, *added)
    original.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    files = pack_tokenizer(original)
    assert all(isinstance(text, str) for text in files.values())
    restored = unpack_tokenizer(files)
    assert json_of(restored) == json_of(original)
    assert restored.chat_template == original.chat_template
    assert (restored.bos_token_id, restored.eos_token_id, restored.pad_token_id) == (1, 2, None)
    text = "A: '저거, <|eot_id|> 예쁘다.'\n"
    assert restored(text)["input_ids"] == original(text)["input_ids"]
    assert json_of(unpack_tokenizer(pack_tokenizer(restored))) == json_of(original)  # as a run that is resumed twice does


@pytest.mark.parametrize("name", ["../evil.json", "a/../../evil.json", "/tmp/mmcoref-evil.json"])
def test_a_packed_file_that_escapes_its_folder_is_refused(
    name: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(Path, "write_text", lambda self, *_: written.append(self.resolve()))
    with pytest.raises(UserError) as caught:
        unpack_tokenizer({name: "{}", **pack_tokenizer(tokenizer)})
    assert str(caught.value) == f"the checkpoint's tokenizer has a file outside its folder: {name!r}; it is not one of ours."
    assert written == []


def test_of_a_long_error_the_first_line_is_told() -> None:
    assert first_line(OSError("\n one \ntwo")) == "one "
    assert first_line(OSError()) == "OSError"
