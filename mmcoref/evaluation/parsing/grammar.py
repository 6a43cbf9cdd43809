"""Tokens -> statements: which options each sentence of an answer names, and what it says of them.

A sentence is read from left to right. Options that are joined (`A와 D`, `A 또는 D`) make one statement, whose role depends
on what announces it (`정답은`), on what follows it directly (`입니다`, `가 아니라`), and else on the last predicate before the
next option (`은 책이므로 제외됩니다`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum, auto

from mmcoref.evaluation.parsing.statements import Role, Statement, Target, common
from mmcoref.evaluation.parsing.tokens import Token
from mmcoref.evaluation.parsing.words import Kind


class _Frame(Enum):
    """What stands before an option in its sentence."""

    START = auto()  # nothing that matters
    ANSWER = auto()  # `정답은`
    ANSWER_FAR = auto()  # `정답은 앉을 수 있는`
    THEREFORE = auto()
    THEREFORE_FAR = auto()
    OTHER = auto()


_FURTHER = {_Frame.START: _Frame.OTHER, _Frame.ANSWER: _Frame.ANSWER_FAR, _Frame.THEREFORE: _Frame.THEREFORE_FAR}
_NAMES = (Kind.LETTER, Kind.OPTION)
_ENDS = (Kind.STOP, Kind.QUESTION, Kind.LINE)
_PARTICLES = (Kind.SUBJECT, Kind.TOPIC, Kind.OBJECT, Kind.PARTICLE, Kind.WITH)
_SKIPPED = (*_PARTICLES, Kind.FILLER, Kind.OR)  # may stand between an option and its predicate
_BACK = 4  # tokens between an option or an announcement and what depends on it
_LIGHT = (*_SKIPPED, Kind.OPENER, Kind.NOT_NEXT)  # leave in force what was announced


def read(tokens: Sequence[Token]) -> list[Statement]:
    """Read an answer's tokens into its statements, in their order."""
    statements: list[Statement] = []
    for sentence in _sentences(tokens):
        statements += _Sentence(sentence, opens=sentence[0] is tokens[0]).statements()
    return statements


def _sentences(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Part the tokens at the ends of sentences and of lines; an announcement may be a line of its own."""
    sentence: list[Token] = []
    for place, token in enumerate(tokens):
        if token.kind is Kind.ANSWER and _is_predicate(sentence, tokens[place + 1 : place + 2]):
            token = token._replace(kind=Kind.RIGHT)
        elif token.kind is Kind.ANSWER and sentence and sentence[-1].kind is Kind.OBJECT:
            token = token._replace(kind=Kind.POINT)  # `B를 가리키는 것으로 보입니다`
        if token.kind is Kind.LINE and _announces(sentence):
            continue
        sentence.append(token)
        if token.kind in _ENDS:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _is_predicate(before: Sequence[Token], following: Sequence[Token]) -> bool:
    """Tell `B가 정답.` and `B is the answer.` from `정답: B`."""
    if following and following[0].kind not in _ENDS:
        return False
    kinds = [token.kind for token in before[-_BACK:] if token.kind not in (Kind.SUBJECT, Kind.TOPIC, Kind.FILLER)]
    return bool(kinds) and kinds[-1] in _NAMES


def _announces(sentence: Sequence[Token]) -> bool:
    """Check whether a line ends in an announcement: `정답은 다음과 같습니다:`."""
    for token in reversed(sentence[-_BACK:]):
        if token.kind is not Kind.FILLER:
            return token.kind is Kind.ANSWER
    return False


class _Sentence:
    """Reads one sentence.

    Args:
        tokens: of the sentence, with its end.
        opens: whether it is the first of the text.
    """

    def __init__(self, tokens: list[Token], *, opens: bool) -> None:
        self._asked = tokens[-1].kind is Kind.QUESTION
        self._tokens = tokens[:-1] if tokens[-1].kind in _ENDS else list(tokens)
        self._opens = opens
        self._place = 0
        self._frame = _Frame.START
        for place in reversed(range(len(self._tokens))):
            if self._is_speaker(place):
                self._tokens[place] = self._tokens[place]._replace(kind=Kind.WORD)

    def statements(self) -> list[Statement]:
        """Read all of the sentence."""
        found: list[Statement] = []
        while self._place < len(self._tokens):
            kind = self._tokens[self._place].kind
            if kind in _NAMES:
                found += self._names()
            else:
                self._announce(kind)
                self._place += 1
        return found

    def _kind(self, place: int) -> Kind | None:
        return self._tokens[place].kind if 0 <= place < len(self._tokens) else None

    def _past(self, place: int, kinds: Sequence[Kind]) -> int:
        """Return the first place from here on whose token is of none of these kinds."""
        while self._kind(place) in kinds:
            place += 1
        return place

    def _has_text(self, place: int) -> bool:
        """Check whether the letter at a place is followed by an option's text that belongs to it."""
        letter = self._tokens[place]
        if self._kind(place + 1) is not Kind.OPTION:
            return False
        return bool(letter.close) or bool(self._tokens[place + 1].mask & letter.mask)

    def _is_speaker(self, place: int) -> bool:
        """Tell the speakers A and B from bare letters of options, which have a predicate, an end or another option next to them."""
        token = self._tokens[place]
        if token.kind is not Kind.LETTER or token.close or self._has_text(place):
            return False
        if self._kind(place + 1) is Kind.OR:
            return False
        after = self._past(place + 1, _SKIPPED)
        between = [token.kind for token in self._tokens[place + 1 : after]]
        if self._kind(after) in _NAMES:
            return Kind.OR not in between and Kind.WITH not in between
        particle = between[0] if between and between[0] in _PARTICLES else None
        return not _may_follow(particle, self._kind(after))

    def _announce(self, kind: Kind) -> None:
        """Note what a token that names no option leaves for the next option."""
        if kind is Kind.ANSWER:
            self._frame = _Frame.ANSWER
        elif kind is Kind.THEREFORE:
            self._frame = _Frame.THEREFORE
        elif kind is Kind.NOT:  # `정답은 D가 아니라 B`, `D가 아니라 B`
            self._frame = _Frame.ANSWER if self._frame in (_Frame.ANSWER, _Frame.ANSWER_FAR) else _Frame.START
        elif kind not in _LIGHT:
            self._frame = _FURTHER.get(self._frame, self._frame)

    def _names(self) -> list[Statement]:
        """Read the options that are joined at this place, and move past them."""
        first = self._place
        targets, by_word = self._joined()
        role = self._role(targets, first)
        opens = self._opens and first == 0
        if role is None:
            self._announce(Kind.WORD)
            return []
        next_to = self._kind(self._place)
        statement = Statement(role, targets, opens, next_to in (None, Kind.COPULA), next_to in _PARTICLES, first == 0)
        if role is not Role.DENIED:
            self._frame = _Frame.OTHER
        elif len(targets) > 1 and self._frame is _Frame.ANSWER and not by_word and next_to is Kind.TOPIC:
            # `정답은 B, A는 아닙니다`: the comma parts two statements.
            claimed = statement._replace(role=Role.CLAIMED, targets=targets[:-1], ends=True, has_particle=False)
            return [claimed, Statement(Role.DENIED, targets[-1:])]
        return [statement]

    def _joined(self) -> tuple[tuple[Target, ...], bool]:
        """Read `A) 책, B) 컵 또는 D`; also whether a word joins them, and not commas alone."""
        targets = [self._target()]
        by_word = False
        while True:
            after = self._past(self._place, (Kind.WITH, Kind.OR, Kind.FILLER))
            between = self._tokens[self._place : after]
            joins = [token for token in between if token.kind is not Kind.FILLER]
            if self._kind(after) not in _NAMES or (between and not joins):
                return tuple(targets), by_word
            by_word = by_word or any(token.end - token.start > 1 or token.kind is Kind.WITH for token in joins)
            self._place = after
            targets.append(self._target())

    def _target(self) -> Target:
        """Read one option: a letter, a text, or a letter and its text."""
        token = self._tokens[self._place]
        if token.kind is Kind.OPTION:
            self._place += 1
            return Target(0, token.mask, token.whole, "")
        if self._has_text(self._place):
            text = self._tokens[self._place + 1]
            self._place += 2
            return Target(token.mask, text.mask, text.whole, token.close)
        self._place += 1
        return Target(token.mask, 0, whole=False, close=token.close)

    def _role(self, targets: tuple[Target, ...], first: int) -> Role | None:
        """Decide what is said of options that have just been read; None if they are no options."""
        next_to = self._kind(self._place)
        particle = next_to if next_to in _PARTICLES else None
        place = self._past(self._place, _SKIPPED)
        kind, further = self._kind(place), self._kind(place + 1)
        if self._is_denied_before(first) or kind is Kind.NOT or (kind is Kind.NOT_NEXT and not self._denies_next(place)):
            return Role.DENIED
        if kind is Kind.COPULA and further is Kind.NOT:  # `라고 볼 수 없습니다`
            return Role.DENIED
        if kind is Kind.OPEN:
            return Role.OPEN
        if common(targets) == 0:
            return self._list_role(kind, next_to)
        if kind in (Kind.RIGHT, Kind.CHOOSE, Kind.POINT) and further is Kind.OPEN:
            return Role.OPEN
        if kind in (Kind.RIGHT, Kind.CHOOSE) and _may_follow(particle, kind):
            role: Role | None = Role.CLAIMED
        else:
            stands = next_to in (None, Kind.OR) or kind is Kind.NOT_NEXT
            is_said = stands or kind is Kind.COPULA or (kind is Kind.POINT and _may_follow(particle, kind))
            bare = all(target.bare for target in targets)
            role = self._bare_role(kind, next_to, is_said) if bare else self._full_role(targets, kind, particle, is_said)
        if self._asked and role in (Role.CLAIMED, Role.ASSERTED):
            return Role.OPEN
        return Role.ASSERTED if role is Role.CLAIMED and len(targets) > 1 else role  # `정답은 D, 즉 …`: left to the texts

    def _list_role(self, kind: Kind | None, next_to: Kind | None) -> Role:
        """Decide on several options that are joined: `정답은 A 또는 D입니다`, `A, B, C는 맥락에 맞지 않습니다`."""
        later = self._later_role()
        if later is not Role.MENTIONED:
            return Role.DENIED if later is Role.DENIED else Role.OPEN
        announced = self._frame in (_Frame.ANSWER, _Frame.ANSWER_FAR, _Frame.THEREFORE)
        return Role.OPEN if announced or next_to is None or kind in (Kind.COPULA, Kind.POINT) else Role.MENTIONED

    def _bare_role(self, kind: Kind | None, next_to: Kind | None, is_said: bool) -> Role | None:
        """Decide on a letter that could be a speaker: it needs an announcement, or the start of a sentence, and a predicate."""
        if self._frame is _Frame.ANSWER and (is_said or kind is Kind.CLAUSE):
            return Role.CLAIMED
        if self._frame is _Frame.THEREFORE and is_said:
            return Role.CLAIMED
        if self._frame is _Frame.ANSWER_FAR and kind in (Kind.COPULA, Kind.POINT):
            return Role.CLAIMED
        if kind is Kind.POINT and is_said:
            return Role.ASSERTED
        if self._frame is _Frame.START and is_said and next_to is not Kind.OR:
            return Role.ASSERTED
        return None

    def _full_role(self, targets: tuple[Target, ...], kind: Kind | None, particle: Kind | None, is_said: bool) -> Role:
        """Decide on a letter with its bracket, or an option's text."""
        if self._frame is _Frame.ANSWER and (is_said or particle not in (Kind.SUBJECT, Kind.TOPIC)):
            return Role.CLAIMED
        has_text = any(target.text for target in targets)
        if is_said:
            if self._frame in (_Frame.ANSWER_FAR, _Frame.THEREFORE):
                return Role.CLAIMED
            if self._frame is _Frame.THEREFORE_FAR and has_text:
                return Role.CLAIMED
            if self._frame is _Frame.START or kind is not None:
                return Role.ASSERTED
            return Role.MENTIONED
        return self._later_role()

    def _later_role(self) -> Role:
        """Decide by the last predicate before the next option: `A. 자서전은 책이므로 제외됩니다`."""
        role = Role.MENTIONED
        for place in range(self._place, len(self._tokens)):
            kind = self._tokens[place].kind
            if kind in (*_NAMES, Kind.OTHERS):
                break
            if kind is Kind.NOT or (kind is Kind.NOT_NEXT and not self._denies_next(place)):
                role = Role.DENIED
            elif kind in (Kind.RIGHT, Kind.CHOOSE):
                role = Role.MENTIONED if self._kind(place + 1) is Kind.OPEN else Role.CLAIMED
        return role

    def _denies_next(self, place: int) -> bool:
        """Check whether an English denial stands before an option: `not D`, but not `D is not`."""
        return self._kind(self._past(place + 1, (Kind.FILLER,))) in _NAMES

    def _is_denied_before(self, first: int) -> bool:
        before = first - 1
        while self._kind(before) is Kind.FILLER:
            before -= 1
        return self._kind(before) is Kind.NOT_NEXT


def _may_follow(particle: Kind | None, kind: Kind | None) -> bool:
    """Check whether a predicate belongs to the option before it: `B가 맞습니다`, `B를 선택합니다`, but not `A가 말한 것`."""
    if kind in (Kind.NOT, Kind.NOT_NEXT):
        return True
    if kind is Kind.RIGHT:
        return particle in (None, Kind.SUBJECT, Kind.TOPIC)
    if kind is Kind.CHOOSE:
        return particle in (None, Kind.OBJECT)
    if kind is Kind.POINT:
        return particle is Kind.OBJECT
    return particle is None and kind in (None, Kind.COPULA, Kind.CLAUSE, Kind.OPEN)
