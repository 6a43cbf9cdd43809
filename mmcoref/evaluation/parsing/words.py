"""The words of answers in sentences: what each kind of token looks like, in Korean and in English.

The patterns are for folded texts (`mmcoref.data.unicode.fold`) without quotation marks, and each matches in time linear
in what it matches. A Korean word is a stem with endings: most patterns list stems and let the rest of the word follow
(`\\w*`); endings that decide the meaning are listed in full.
"""

from __future__ import annotations

import re
from enum import Enum, auto


class Kind(Enum):
    """Kinds of tokens."""

    LETTER = auto()  # `D)`, `(D)`, `D번`, or a bare `D`
    OPTION = auto()  # an option's text, or its noun alone
    ANSWER = auto()  # announces an answer: `정답은`, `최종 답변:`, `가리키는 것은`, `the answer is`, `\boxed{`
    THEREFORE = auto()  # announces a conclusion: `따라서`, `so`
    OPENER = auto()  # may open the sentence of an answer: `제 생각에는`, `저것은`, `I think`
    FILLER = auto()  # may stand between an announcement and its answer: `바로`, `선택지`, `the option`
    COPULA = auto()  # asserts: `입니다`, `였어요`, `일 것입니다`, `라고 생각합니다`, `로 보입니다`
    CLAUSE = auto()  # a copula that leads on to another predicate: `이므로`, `인데`, `이지만`
    OPEN = auto()  # asks, supposes or allows: `입니까`, `이라면`, `일 수도 있다`
    SUBJECT = auto()  # particles directly after a letter or an option: `이`, `가`
    TOPIC = auto()  # `는`, `도`
    OBJECT = auto()  # `를`, `로`, `에`
    PARTICLE = auto()  # all others: `의`, `에서는`, `보다`
    WITH = auto()  # those that join: `와`, `이나`
    OR = auto()  # joins: `또는`, `and`, a comma
    RIGHT = auto()  # `맞습니다`, `정답입니다`, `correct`
    CHOOSE = auto()  # `선택합니다`, `고르겠습니다`
    POINT = auto()  # `가리킵니다`, `의미합니다`, `해당합니다`
    NOT = auto()  # denies what stands before it: `아니라`, `틀렸습니다`, `제외됩니다`, `맞지 않습니다`
    NOT_NEXT = auto()  # English: denies the option after it, or else the one before: `not`, `rather than`
    STOP = auto()  # the end of a sentence
    QUESTION = auto()  # the end of a question
    LINE = auto()  # the end of a line
    OTHERS = auto()  # another subject, whose predicate is not the option's: `나머지는`, `다른 보기는`
    WORD = auto()  # any other word


def _any(*patterns: str) -> str:
    return f"(?:{'|'.join(patterns)})"


def _stems(stems: str) -> str:
    """Any of the stems, which are parted by spaces."""
    return _any(*stems.split())


def _words(*patterns: str) -> str:
    """Whole words, one of them."""
    return _any(*patterns) + r"(?!\w)"


_END = r"(?![가-힣])"  # a Korean word ends here; a letter may follow (`정답은B`)

# Endings of the copula 이다 after a letter or a noun. After a vowel its 이 is dropped (`B였습니다`: B is read 비), which is
# accepted after anything.
_CAN = r"(?: ?수(?:는)? ?있(?:습니다|다|어요|음))?"  # `라고 할 수 있습니다` asserts, politely
# ... but not `로 보기 어렵습니다`, `로 보이지 않습니다`: those are denials.
_NOT_DENIED = r"(?!\w{0,4}(?:기(?:는|에는|엔)? ?(?:어렵|어려|힘들)|지(?:는|도)? ?(?:않|못)))"
_THINK = _NOT_DENIED + _stems("생각 판단 추정 추측 결론 확신 믿 보 봅 본 볼 봐 말 답 여기 여겨 여깁 할 하 합 한 해석 이해 추론") + r"\w*"
_SEEM = (
    _NOT_DENIED
    + _stems("보 볼 봐 봅 판단 생각 추정 추측 여겨 여길 확인 결론 결정 하겠 할게 하고 합니다 정하 답 이해 해석 추론 드러")
    + r"\w*"
)
_ASKED = _any(
    r"입니까|인가요?|일까요?|이?냐고?|인지(?:는|도)?|이?라면|이?면",
    r"일 수(?:도|는)? ?있\w*|일지도? ?모\w*|일 가능성\w*",
    r"이?라고 (?:하|한다|생각한다|가정하|가정한다)면",
    r"이?라고 \w+ 수(?:도|는)? ?있(?:지만|으나|는데|겠지만)",
)
_ASSERTED = _any(
    _any(
        r"입니다|이?다|이?었다|였다|이었습니다|였습니다|이?겠\w*|이?올시다",
        r"이?에요|이?예요|이었어요|였어요|이?야(?! ?,)|이었어|였어|이?요",
        r"이?지요?|이?죠|이?네요?|이?군요?|이?거든요?|임(?:이|을|은|에|으로)?|이?며|이?고요?|이자",
        r"같(?:습니다|아요?|다|네요?|음)|인데요",
    )
    + _END,
    r"일 (?:것|거|겁|듯|터)\w*(?: ?(?:입니다|이다|같\w*|합니다|하다|해요?))?",
    r"인 (?:것|거|듯|셈)(?:이?다|입니다|이?에요| ?같\w*| ?하\w*| ?합\w*| ?해\w*)",
    rf"(?:인 것)?(?:으)?로 {_SEEM}{_CAN}",
    rf"이?라고 {_THINK}{_CAN}",
    rf"이?라 (?:할|하|생각|보|봅)\w*{_CAN}",
    r"(?:이|가) (?:됩|된|되|될)\w*",
    r"(?:와|과) 같(?:습니다|다|아요|음)",
)
_LED_ON = _any(
    r"입니다만|이?므로|이?라서|이?니까?|이?기 ?때문\w*|인데|이?지만|이?어서|여서|이?라는|이?란|인 것처럼|인|일",
    r"이?기에|이?기(?:는|도|보다(?:는)?)|이?라도|이?든지?|이?어야|여야|이?나마",
)
_WITH = r"(?:이?나|이?거나|와|과|이?랑|하고|뿐만? ?아니라)"
_CASE = _stems("라고 이라고 까지 부터 처럼 만큼 뿐 조차 마저 밖에 에게 한테 께서 에서 에 으로 로 의 보다 대로 같은")
_ABOUT = r"(?:이|가|은|는|을|를|도|만)"

# The ending or the particle directly after a letter, an option or `정답`.
AFTER = re.compile(
    rf" ?(?P<OPEN>{_ASKED}{_END})"
    rf"| ?(?P<COPULA>{_ASSERTED})"
    rf"| ?(?P<CLAUSE>{_LED_ON}{_END})"
    rf"|(?P<WITH>{_WITH}{_END})"
    rf"|(?P<SUBJECT>(?:이|가|만이){_END})"
    rf"|(?P<TOPIC>(?:은|는|도|만은?){_END})"
    rf"|(?P<OBJECT>(?:을|를|만을|(?:으로|로|에)(?:는|만)?){_END})"
    rf"|(?P<PARTICLE>(?:들)?(?:(?:{_WITH}|{_CASE})?{_ABOUT}|{_CASE}){_END})"
)

_ANSWER_NOUN = r"(?:정답|해답|답변|답안|답)"
_TOPIC = r"(?:으로는|로는|으로|은|는|이|가|을|를)?"
_THING = _stems("것 건 게 답 답변 정답 보기 선택 선택지 번호 물건 대상 사물 객체 항목 옵션")
_RIGHT = r"(?:맞(?!은편|춤|추|닿|대)|정확(?!히)|적절(?!히)|옳|적합|타당|올바|알맞|합당|어울)"
_POINT = _stems("가리키 가리킨 가리킵 가리켰 의미하 의미한 의미합 지칭하 지칭한 지칭합 뜻하 뜻한 뜻합 말하 말한 말합")
_SHOW = _stems("나타내 나타낸 나타냅 일컫 해당하 해당되 해당한 해당된 해당합 해당됩")
_SEEMS = r"[가-힣]{0,3} (?:것|듯)(?:으로|이)? ?(?:같|보|생각|판단|합|하|입)\w*"  # `맞는 것 같습니다` is `맞습니다`

# In the order in which they are tried: denials and suppositions come before what they deny and suppose.
_PATTERNS: tuple[tuple[Kind, str], ...] = (
    (Kind.LINE, r"\n+"),
    (Kind.QUESTION, r"[.!]*\?[.!?]*"),
    (Kind.STOP, r"[.!]+|</answer>"),
    (Kind.OR, r"[,;/·&]|" + _words("또는", "혹은", "아니면", "및", "그리고", "뿐만? ?아니라", "or", "and")),
    (
        Kind.NOT,
        _any(
            rf"{_ANSWER_NOUN}(?:이|은|는|도|으로는)? ?(?:아[니닌닐닙님녜]|될 수 없)\w*",
            r"아(?:니(?!면)|닌|닐|닙|님|녜|녔)\w*",
            r"[가-힣]{1,8}지(?:는|도|가|를)? ?(?:않|못하|못합|못한|못했)\w*",
            r"[가-힣]{1,8}기(?:는|가|에는|엔|에)? ?(?:어렵|어려|힘들)\w*",
            r"수(?:가|는|도)? ?없\w*",
            r"(?:관련|관계|연관|상관)(?:이|은|성이|성은)? ?(?:없|적)\w*",
            r"거리가 ?(?:멀|먼)\w*|안 (?:맞|됩|되|돼)\w*",
            _stems("제외 배제 탈락 소거 제거 오답 무관 불가능 부적절 부적합 어긋 잘못") + r"\w*",
            r"틀(?:리|린|렸|립|려)\w*|틀림(?! ?없)\w*",
            "[✗✘❌×]",
        ),
    ),
    (Kind.OPEN, rf"(?:{_RIGHT}|{_POINT}|{_SHOW})[가-힣]{{0,6}}?(?:면|까요?|나요?|가요?|냐|는지|은지|을지|한지){_END}"),
    (Kind.OPEN, r"수(?:도|는)? ?있\w*|가능성[이도] ?있\w*"),
    (Kind.RIGHT, rf"{_RIGHT}{_SEEMS}"),
    (Kind.ANSWER, rf"(?:{_RIGHT}|{_POINT}|{_SHOW}|선택|고르|고른|찾|묻)[가-힣]{{0,3}} {_THING}{_TOPIC}{_END}"),
    (Kind.ANSWER, rf"(?:최종|제|나의|내|저의) ?(?:{_ANSWER_NOUN}|선택지?|결론|결정){_TOPIC}{_END}"),
    (Kind.ANSWER, rf"(?:선택|결론)(?:은|지는|(?= ?:)){_END}|답변?(?:하|드리)자면|(?:고르|고른다|선택하|선택한다|꼽)(?:자?면)"),
    (Kind.RIGHT, rf"{_ANSWER_NOUN}(?= ?(?:{_ASKED}{_END}|{_ASSERTED}|{_LED_ON}{_END}))"),
    (Kind.ANSWER, rf"{_ANSWER_NOUN}{_TOPIC}{_END}"),
    (Kind.ANSWER, r"\\(?:boxed|fbox)\{(?:\\\w+\{)*|<answer>"),
    (
        Kind.ANSWER,
        r"(?i:(?:(?:final|correct|right|best|my) ){0,3}answer|(?:correct|right|best|final|my) (?:option|choice|object|one|pick))(?!\w)",
    ),
    (Kind.ANSWER, "I(?:d|ll| would| will)? " + _words("choose", "chose", "pick", "picked", "select", "selected", "go with", "say")),
    (Kind.THEREFORE, _words("따라서|그러므로|그래서|그렇기 때문에|결론적으로|결국|종합하면|정리하면")),
    (Kind.THEREFORE, _words("(?i:therefore|thus|hence|so|in conclusion|consequently)")),
    (Kind.OPENER, r"(?:제|내|저의|나의) ?(?:생각|판단|의견|견해)" + _words("에는?", "으로는", "로는", "은", "이", "")),
    (Kind.OPENER, _words("(?:제|내)가 보기에는?", "저는", "나는", "아마도?", "아무래도", "여기는?", "거기는?", "네", "예", "음", "응")),
    (Kind.OPENER, r"[이그저] (?!사람|분|화자|사진)[가-힣]{1,8}(?:은|는)(?!\w)"),
    (Kind.OPENER, r"[이그저](?:것|거|게|건|걸|곳|기)?" + _words("은", "는", "이", "가", "을", "를", "")),
    (Kind.OPENER, _words("(?i:yes|okay|I think|I believe|in my opinion|its|it is|it|that)")),
    (Kind.FILLER, r"(?:다음|아래|이하)(?:과|와)? ?같(?:습니다|다|이|아요)[.:]?"),
    (Kind.FILLER, _stems("바로 보기 선택지 선택 옵션 번호 역시 즉 모두 전부") + r"(?!\w)"),
    (Kind.FILLER, _stems("당연히 분명 분명히 확실히 명확히 정확히 가장 제일 더 유일하게") + r"(?!\w)"),
    (Kind.NOT_NEXT, _words(r"(?i:(?:is|was|are|does|do|would|can|could|should)?(?:nt| ?not)(?: be)?)")),
    (Kind.NOT_NEXT, _words("(?i:cannot|neither|nor|never|rather than|instead of|except|excluding|incorrect|wrong|ruled? out)")),
    (Kind.NOT_NEXT, _words("(?i:exclude[sd]?|eliminate[sd]?|eliminating)")),
    (Kind.FILLER, _words("(?i:is|was|are|be|would be|should be|must be|the|option|choice|letter|but|clearly|definitely|likely)")),
    (Kind.OTHERS, rf"나머지\w*|(?:다른|그 외의?) {_THING}\w*"),
    (Kind.CLAUSE, _words("(?i:because|since|as|for|which)")),
    (Kind.RIGHT, rf"{_RIGHT}(?!\w*(?:한|는|은|른|을|할|던)(?!\w))\w*|틀림 ?없\w*|[✓✔✅⭕]"),
    (Kind.RIGHT, _words("correct", "(?<=is )right", "(?<=is )true")),
    (Kind.CHOOSE, _stems("선택하 선택합 선택했 선택할 선택한 선택해 고르 고릅 고를 골랐 골라 택하 택합 택했 뽑") + r"\w*"),
    (Kind.POINT, rf"(?:{_POINT}|{_SHOW})\w*|" + _words("refers? to", "points? to")),
    (Kind.WORD, r"\w+"),
)

TOKEN = re.compile("|".join(f"(?P<{kind.name}_{number}>{pattern})" for number, (kind, pattern) in enumerate(_PATTERNS)))
KIND_OF_GROUP = {f"{kind.name}_{number}": kind for number, (kind, _) in enumerate(_PATTERNS)} | {kind.name: kind for kind in Kind}
# The letter, `번` ("number") or `선택지` ("option"), and what closes it.
LETTER = re.compile(r"([A-D])(?![A-Za-z0-9_])(번(?!째|호)(?: ?보기)?| ?번? ?(?:선택지|항목|옵션))?([)\]>}】〉]+|[.:])?")
