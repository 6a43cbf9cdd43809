"""Output text -> option. `tests/evaluation/test_answer.py` and `answer_table.py` there are tables of the forms, failures included.

A letter opens the output, or a conclusion names an option, or one option's text stands in a sentence: in this order.
If letter and text disagree (`A) ` before D's text) the letter is the answer, as in the published scoring.

`parsing.tokens` reads the text into tokens, by the lists in `parsing.words`; `parsing.grammar` reads the tokens into
statements (`정답은 D입니다`: D is claimed); here the answer is chosen among those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from mmcoref.data.prompt import answer_text
from mmcoref.data.record import Option, Record
from mmcoref.data.unicode import canonical
from mmcoref.evaluation.parsing.grammar import read
from mmcoref.evaluation.parsing.statements import Role, Statement
from mmcoref.evaluation.parsing.tokens import Mask, Names, Token, answer_part, names, tokenize
from mmcoref.evaluation.parsing.words import Kind

FoundBy = Literal["letter", "conclusion", "option_text", "unparsable"]
Failure = Literal[
    "unparsable",
    "wrong_letter_for_right_text",
    "wrong_option",
    "repeated_option",
    "no_stop",
    "right_option_with_extra_text",
    "right_option_in_other_form",
]


class Parsed(NamedTuple):
    """What an output was read as: the option (None: no option, always wrong) and the rule that found it."""

    option: Option | None
    found_by: FoundBy


def parse_answer(output: str, options: Sequence[Option]) -> Parsed:
    """Find the option that an output names.

    NFD, full width, Markdown and quotation marks make no difference, nor does a thought before the answer or a run-on
    record after it.

    1. `letter`: the output opens with a letter and `)`, `.`, `:`, a copula (`D입니다`) or the line's end. `A가 올린 …` opens
       with an owner. If nothing but the option's text follows in its sentence, no more is read, since a model that never
       learnt to stop writes on; else a conclusion counts before it. A letter that is denied (`A) …이 아니라`), eliminated
       (`A. …이므로 제외됩니다`) or one of several (`A) … 또는 D) …`) is no answer, nor are the recited choices.
    2. `conclusion`: the last that says which option is the answer (`정답은 X`, `답: X`, `X가 정답입니다`, `X를 선택합니다`, `따라서 X`,
       `the answer is X`, `\\boxed{X}`), or else a sentence that is a letter and a copula (`저것은 B입니다`).
    3. `option_text`: one option's text stands in the output, or its noun as what is meant (`캠핑 의자입니다`), and is not
       denied.

    Several options without a conclusion, a text that two options share, or none: `unparsable`.

    Args:
        output: what the model wrote after the prompt.
        options: the record's four options, in any order.
    """
    of = names(tuple(options))
    written = of.written(output)
    if written:
        return Parsed(written, "letter")
    tokens, text = _tokens(output, of)
    statements = read(tokens)
    opening = _opening(statements, tokens, text, of)
    if opening and opening.ends:
        return Parsed(of.one(opening.mask), "letter")
    claimed = of.one(_claimed(statements))
    if claimed:
        return Parsed(claimed, "letter" if opening and of.one(opening.mask) == claimed else "conclusion")
    if opening and not _goes_through(opening, statements, of):
        return Parsed(of.one(opening.mask), "letter")
    letters = [one for one in statements if one.role is Role.ASSERTED and not any(target.text for target in one.targets)]
    named = of.one(_named(statements))
    if named is None:
        return Parsed(None, "unparsable")
    return Parsed(named, "conclusion" if letters else "option_text")


def same_photo(option: Option | None, gold: Option) -> bool:
    """Whether both options name the same owner; an option that names nobody is always the wrong photo."""
    return option is not None and option.owner is not None and option.owner == gold.owner


def exactly(output: str, gold: Option) -> bool:
    """Exact match as published: output and gold answer, period included, are equal once both are stripped.

    They are compared in Unicode's composed form: some tokenizers compose what they read, and no reader sees a difference.
    """
    return canonical(output.strip()) == canonical(answer_text(gold).strip())


def failure(output: str, record: Record, *, stopped: bool) -> Failure | None:
    """Why an output is no exact match (None where it is one): the first of these that holds.

    - `unparsable`: no option.
    - Another option than the gold one: `wrong_letter_for_right_text` (that option's letter before the gold text), else
      `wrong_option`.
    - The gold one: `repeated_option` (its text twice or more, and no other's), `no_stop` (the token limit ended it),
      `right_option_with_extra_text` (it contains the exact answer), else `right_option_in_other_form` (only the letter,
      no period, other words).

    Args:
        output: what the model wrote after the prompt.
        record: the dialogue, with its solution.
        stopped: whether the model ended the output itself.
    """
    gold = record.gold
    if exactly(output, gold):
        return None
    option = parse_answer(output, record.options).option
    if option is None:
        return "unparsable"
    of = names(record.options)
    statements = read(_tokens(output, of)[0])
    texts = [target for one in statements if one.role is not Role.DENIED for target in one.targets if target.whole]
    answered, right = (1 << record.options.index(one) for one in (option, gold))
    if option != gold:
        swapped = any(target.letter == answered and target.text & right for target in texts)
        return "wrong_letter_for_right_text" if swapped else "wrong_option"
    if len(texts) > 1 and all(target.mask & right for target in texts):
        return "repeated_option"
    if not stopped:
        return "no_stop"
    return "right_option_with_extra_text" if canonical(answer_text(gold)) in canonical(output) else "right_option_in_other_form"


def _tokens(output: str, of: Names) -> tuple[list[Token], str]:
    """Return an output's tokens, without the heading `## Solution` once more, and the text that they were read from."""
    text = answer_part(output)
    if text.startswith("Solution"):
        text = text.removeprefix("Solution").lstrip(" \n:")
    return tokenize(text, of), text


def _opening(statements: Sequence[Statement], tokens: Sequence[Token], text: str, of: Names) -> Statement | None:
    """Return the statement of the letter that opens an output, if that can be an answer."""
    if not statements or not statements[0].opens:
        return None
    first = statements[0]
    target = first.targets[-1]
    if not target.letter or (target.bare and not first.ends) or (first.has_particle and not target.text):
        return None
    if not first.mask or first.role in (Role.DENIED, Role.OPEN) or _recites(tokens, text, of):
        return None
    return first


def _recites(tokens: Sequence[Token], text: str, of: Names) -> bool:
    """Check for the choices said again, on one line or on several: A, B and C in order, and no sentence ends between them."""
    wanted = [of.of_letter[letter] for letter in "ABC"]
    end = 0
    for token in tokens:
        if token.kind is not Kind.LETTER or not token.close or token.mask != wanted[0]:
            continue
        between = text[end : token.start].rstrip(" \n([<")
        between = between.removesuffix(",") if between.endswith(",") else between.removesuffix(".")
        if "." in between or "\n" in between or between.endswith("니다"):
            return False
        end = token.end
        wanted = wanted[1:]
        if not wanted:
            return True
    return False


def _goes_through(opening: Statement, statements: Sequence[Statement], of: Names) -> bool:
    """Check whether the letter that opens an output is the first of a list in which each option is discussed."""
    if opening.mask != of.of_letter["A"]:
        return False
    following = [one.targets[0] for one in statements if one.starts]
    return any(target.close and target.letter == of.of_letter["B"] for target in following)


def _claimed(statements: Sequence[Statement]) -> Mask:
    """Return the options that the last conclusion can mean; none if it was taken back."""
    answer = 0
    for one in statements:
        if one.role is Role.CLAIMED:
            answer = one.mask
        elif (one.role is Role.OPEN and not one.mask) or (one.role is Role.DENIED and answer & one.mask == answer):
            answer = 0
    return answer


def _named(statements: Sequence[Statement]) -> Mask:
    """Return the options that all that is named, and not denied, can mean."""
    named: list[Mask] = []
    for one in statements:
        if one.role is Role.DENIED:
            named = [mask for mask in named if mask != one.mask]
            continue
        if one.role in (Role.CLAIMED, Role.ASSERTED) or (one.role is Role.OPEN and not one.mask):
            named.append(one.mask)
        named += [target.mask for target in one.targets if target.whole]
    mask = named[0] if named else 0
    for other in named:
        mask &= other
    return mask
