import unicodedata

import pytest

from mmcoref.data.record import Record
from mmcoref.evaluation.floors import Floor, best_object, best_photo, floors

CHOICES = ("A) A가 올린 사진 속 빨간 책", "B) B가 올린 사진 속 작은 컵", "C) B가 올린 사진 속 의자", "D) A가 올린 사진 속 흰 접시")


def dialogue(gold: int, *utterances: str, named: str = "A", choices: tuple[str, ...] = CHOICES) -> Record:
    return Record(
        image_descriptions=("A의 사진: 의자, 흰 접시.", "B의 사진: 작은 컵."),  # captions must not count as mentions
        conversation=("A: '안녕.'", "B: '그래.'", *utterances),
        problem=f"마지막 {named}의 발화에서 '저거'는 A와 B 중 어느 사진에 포함된 어느 물건인가?",
        choices=choices,
        solution=choices[gold],
    )


def named_floor(name: str, *test: Record) -> tuple[int | None, int]:
    [floor] = [floor for floor in floors([dialogue(3)], test) if floor.name == name]
    assert floor.n == len(test)
    return floor.object, floor.photo


def test_published_floors(published) -> None:
    found = floors(*published)
    assert found == [
        Floor("always D", 196, 238, 346),
        Floor("mentioned last, whole noun", 226, 276, 346),
        Floor("mentioned last, last word", 232, 281, 346),
        Floor("photo of the speaker not named", None, 255, 346),
    ]
    assert best_object(found) == best_photo(found) == found[2]


def decomposed(record: Record) -> Record:
    """The same record as a file in NFD holds it."""
    fields = {}
    for name, value in record.model_dump(exclude_none=True).items():
        texts = [value] if isinstance(value, str) else value
        changed = [unicodedata.normalize("NFD", text) for text in texts]
        fields[name] = changed[0] if isinstance(value, str) else changed
    return Record.model_validate(fields)


def test_decomposed_records_have_the_same_floors(published) -> None:
    train, test = (list(map(decomposed, part)) for part in published)
    assert test[0].choices != published.test[0].choices
    assert floors(train, test) == floors(*published)


@pytest.mark.parametrize("part", ["conversation", "choices", "problem"])
def test_a_part_in_another_encoding_is_still_found(part: str) -> None:
    record = dialogue(2, "A: '의자.'")
    mixed = record.model_copy(update={part: getattr(decomposed(record), part)})
    if part == "choices":
        mixed = Record.model_validate(mixed.model_dump())
    assert [(floor.object, floor.photo) for floor in floors([dialogue(3)], [mixed])] == [(0, 0), (1, 1), (1, 1), (None, 1)]


def test_an_options_period_is_no_part_of_its_noun() -> None:
    choices = ("A) A가 올린 사진 속 책.", "B) 컵.", "C) B가 올린 사진 속 의자.", "D) A가 올린 사진 속 접시.")
    assert named_floor("mentioned last, whole noun", dialogue(1, "A: '의자랑 컵이네'", choices=choices)) == (1, 0)
    assert named_floor("mentioned last, last word", dialogue(2, "A: '컵이랑 의자네'", choices=choices)) == (1, 1)


def test_majority_letter_is_the_train_parts() -> None:
    test = [dialogue(0), dialogue(0), dialogue(3), dialogue(1)]
    assert floors([dialogue(1), dialogue(3), dialogue(3)], test)[0] == Floor("always D", 1, 3, 4)
    assert floors([dialogue(3), dialogue(1)], test)[0] == Floor("always B", 1, 1, 4)  # a tie: the earlier letter


@pytest.mark.parametrize(
    ("utterances", "whole", "last_word"),
    [
        (["A: '작은 컵 옆에 의자.'"], 2, 2),
        (["A: '의자 옆에 작은 컵.'"], 1, 1),
        (["A: '의자.'", "B: '빨간 책.'", "A: '저거.'"], 0, 0),
        (["A: '의자.'", "B: '작은 컵.'", "A: '의자!'"], 2, 2),  # the last mention of each
        (["A: '작은 컵, 그리고 접시.'"], 1, 3),  # the whole noun is "흰 접시"
        (["A: '저거.'"], 0, 0),  # nothing is mentioned: the first option
    ],
)
def test_mentioned_last(utterances: list[str], whole: int, last_word: int) -> None:
    for gold in range(4):
        record = dialogue(gold, *utterances)
        assert named_floor("mentioned last, whole noun", record)[0] == (gold == whole)
        assert named_floor("mentioned last, last word", record)[0] == (gold == last_word)


def test_mentioned_last_counts_the_photo_by_owner() -> None:
    assert named_floor("mentioned last, whole noun", dialogue(1, "A: '의자.'")) == (0, 1)  # C for B: both of B's photo
    assert named_floor("mentioned last, whole noun", dialogue(0, "A: '의자.'")) == (0, 0)


@pytest.mark.parametrize("named", ["A", "B"])
def test_photo_of_the_speaker_not_named(named: str) -> None:
    """The named one, not the one who speaks last (always A here)."""
    right = [gold for gold in range(4) if named_floor("photo of the speaker not named", dialogue(gold, "A: '응'", named=named))[1]]
    assert right == ([1, 2] if named == "A" else [0, 3])


def test_options_without_photo_or_owner() -> None:
    choices = ("A) A가 올린 사진 속 책", "B) B의 조각", "C) 우주선", "D) B가 올린 사진 속")
    record = dialogue(2, "A: '저 우주선!'", choices=choices)
    assert named_floor("mentioned last, whole noun", record) == (1, 0)  # nobody's photo is the wrong photo
    assert named_floor("photo of the speaker not named", record) == (None, 0)


def test_a_question_that_names_no_speaker_gets_no_photo() -> None:
    record = dialogue(1).model_copy(update={"problem": "'저거'는 무엇인가?"})
    assert named_floor("photo of the speaker not named", record) == (None, 0)


def test_best_floors() -> None:
    found = [Floor("a", 5, 6, 10), Floor("b", None, 9, 10), Floor("c", 7, 7, 10), Floor("d", 7, 8, 10)]
    assert best_object(found).name == "c"
    assert best_photo(found).name == "b"


def test_floors_need_records() -> None:
    with pytest.raises(ValueError, match="got 0 and 1"):
        floors([], [dialogue(0)])
    with pytest.raises(ValueError, match="got 1 and 0"):
        floors([dialogue(0)], [])
