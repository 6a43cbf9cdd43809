"""The forms in which texts are compared, their laws, and time on hostile text."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmcoref.data.unicode import canonical, fold, has_line_break, normalise, one_line

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LINE_BREAKS = ("\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("A) B가 올린 사진 속 커피잔", "A) B가 올린 사진 속 커피잔"),
        (unicodedata.normalize("NFD", "커피잔"), "커피잔"),
        ("Ａ） ［Ｂ］： ｄ．", "A) [B]: d."),
        ("Ⓓ", "D"),
        ("‘저거’ ‚저거‛ `저거´ 「저거」 ′", "'저거' '저거' '저거' '저거' '"),
        ("“저거” „저거‟ «저거» 『저거』 ″", '"저거" "저거" "저거" "저거" "'),
        ("정\u200b답\ufeff은\u00ad B", "정답은 B"),
        ("이–그—저", "이-그-저"),
        ("끝。끝｡", "끝.끝."),
        ("가\u00a0나\u3000다", "가 나 다"),
        ("가\r\n나\u2028다", "가\r\n나\u2028다"),
        ("", ""),
    ],
)
def test_fold(text: str, folded: str) -> None:
    assert fold(text) == folded


@example("\u1fef\u1ffd\u0384")  # NFKC turns the first two into a grave and an acute accent
@given(TEXT)
def test_folding_twice_is_folding_once(text: str) -> None:
    assert fold(fold(text)) == fold(text)
    assert normalise(normalise(text)) == normalise(text)


@given(TEXT)
def test_canonically_equal_texts_fold_to_the_same(text: str) -> None:
    for form in ("NFC", "NFD"):
        encoded = unicodedata.normalize(form, text)
        assert fold(encoded) == fold(text)
        assert canonical(encoded) == canonical(text)


def test_canonical_keeps_what_is_another_character() -> None:
    assert canonical("Ａ ‘컵’") == "Ａ ‘컵’"


def test_normalise_makes_whitespace_one_space() -> None:
    assert normalise("  캠핑 \r\n\t의자\u2028 ") == "캠핑 의자"


@pytest.mark.parametrize("line_break", LINE_BREAKS)
def test_a_line_break_with_the_spaces_around_it_becomes_one_space(line_break: str) -> None:
    assert has_line_break(f"가{line_break}나")
    assert one_line(f"가 {line_break}{line_break}  나{line_break}") == "가 나"


@given(TEXT)
def test_a_text_on_one_line_is_left_alone(text: str) -> None:
    kept = one_line(text)
    assert not has_line_break(kept)
    assert kept == text or has_line_break(text)
    assert normalise(kept) == normalise(text)


@pytest.mark.parametrize("marks", ["\u0300\u0323" * 10_000, "\u0300" * 10_000 + "\u0323" * 10_000, "\u302a\u3099" * 10_000])
def test_many_combining_marks_take_no_time(marks: str) -> None:
    started = time.perf_counter()
    fold("a" + marks)
    canonical("a" + marks)
    assert time.perf_counter() - started < 0.5  # unguarded they take 2 to 4 s
    assert fold("e" + "\u0301" * 30) == unicodedata.normalize("NFC", "e" + "\u0301" * 30)
