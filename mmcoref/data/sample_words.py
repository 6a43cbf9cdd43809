"""What the embedded sample data is made of: kinds of things, scenes that show them, and things people say.

Templates are `str.format` strings. A slot's format specification is a pair of particles, of which the one that fits the
slot's word is attached: `{thing:이/가}` (see `mmcoref.data.sample.Noun`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["object", "topic", "tool", "place"]

# How "that one" is said in each role in front of a predicate, and how a question quotes it.
DEMONSTRATIVES: Mapping[Role, tuple[tuple[str, str], ...]] = {
    "object": (("저거", "저거"), ("저걸", "저걸"), ("저것을", "저것"), ("저거를", "저거")),
    "topic": (("저거", "저거"), ("저건", "저건"), ("저거는", "저거"), ("저것은", "저것")),
    "tool": (("저걸로", "저걸"), ("저거로", "저거"), ("저것으로", "저것")),
    "place": (("저기에", "저기"), ("저기", "저기")),
}


@dataclass(frozen=True)
class Kind:
    """Things of which the same can be said, and what is said of no other kind.

    Attributes:
        nouns: its members; no noun belongs to two kinds.
        says: by the demonstrative's role, the predicates that fit this kind alone.
    """

    nouns: tuple[str, ...]
    says: Mapping[Role, tuple[str, ...]]


@dataclass(frozen=True)
class Scene:
    """What one photo can show.

    Attributes:
        settings: where it was taken.
        kinds: keys of `KINDS` that may be seen there.
    """

    settings: tuple[str, ...]
    kinds: tuple[str, ...]


def _nouns(text: str) -> tuple[str, ...]:
    return tuple(noun.strip() for noun in text.split(","))


KINDS: Mapping[str, Kind] = {
    "drink": Kind(
        _nouns("아메리카노, 카페라테, 레모네이드, 녹차, 밀크티, 식혜, 수정과, 딸기주스, 핫초코, 사이다, 유자차, 콜드브루"),
        {
            "object": ("한 모금 마셔 보고 싶어", "시원하게 들이켜고 싶다"),
            "topic": ("마시면 갈증이 싹 풀리겠다", "한 모금만 마셔도 정신이 들겠어"),
        },
    ),
    "food": Kind(
        _nouns("케이크, 마카롱, 크루아상, 피자, 파스타, 떡볶이, 김밥, 샌드위치, 샐러드, 팬케이크, 햄버거, 와플"),
        {
            "object": ("한 입 먹어 보고 싶어", "배부를 때까지 먹고 싶다"),
            "topic": ("한 입만 먹어도 행복하겠다", "씹는 맛이 좋겠어"),
        },
    ),
    "clothes": Kind(
        _nouns("코트, 원피스, 청바지, 스웨터, 셔츠, 재킷, 패딩, 카디건, 블라우스, 치마, 한복, 후드티"),
        {
            "object": ("한번 입어 보고 싶어", "입고 외출하고 싶다"),
            "topic": ("입으면 몸매가 살겠다", "소매 길이가 딱 좋겠어"),
        },
    ),
    "shoes": Kind(
        _nouns("운동화, 구두, 부츠, 샌들, 슬리퍼, 하이힐, 로퍼, 등산화, 장화, 스니커즈, 단화, 털신"),
        {
            "object": ("한번 신어 보고 싶어", "신고 뛰어 보고 싶다"),
            "topic": ("신으면 발이 편하겠다", "굽이 적당해서 좋겠어"),
        },
    ),
    "hat": Kind(
        _nouns("밀짚모자, 베레모, 중절모, 비니, 털모자, 벙거지, 챙모자, 페도라, 빵모자, 카우보이모자, 군밤모자, 야구 모자"),
        {
            "object": ("머리에 써 보고 싶어", "머리에 푹 눌러쓰고 싶다"),
            "topic": ("쓰면 머리가 작아 보이겠다", "챙이 있어서 얼굴이 안 타겠어"),
        },
    ),
    "bag": Kind(
        _nouns("배낭, 숄더백, 크로스백, 에코백, 백팩, 메신저백, 토트백, 더플백, 책가방, 보스턴백, 슬링백, 천 가방"),
        {
            "object": ("어깨에 메 보고 싶어", "메고 학교에 가고 싶다"),
            "topic": ("메면 어깨가 가볍겠다", "짐이 많이 들어가겠어"),
        },
    ),
    "seat": Kind(
        _nouns("소파, 흔들의자, 안락의자, 벤치, 스툴, 빈백, 방석, 접이식 의자, 나무 의자, 그네 의자, 캠핑 의자, 등나무 의자"),
        {
            "place": ("앉아서 쉬고 싶어", "잠깐 앉아 보고 싶다"),
            "topic": ("앉으면 정말 푹신하겠다", "오래 앉아 있어도 허리가 안 아프겠어"),
        },
    ),
    "light": Kind(
        _nouns("스탠드, 무드등, 샹들리에, 랜턴, 전구, 벽등, 취침등, 알전구, 펜던트등, 네온사인, 장스탠드, 호롱불"),
        {
            "object": ("밤새 켜 두고 싶어", "은은하게 켜 놓고 싶다"),
            "topic": ("켜면 방 안이 환해지겠다", "불빛이 은은해서 좋겠어"),
        },
    ),
    "plant": Kind(
        _nouns("선인장, 몬스테라, 장미, 튤립, 수국, 해바라기, 난초, 라벤더, 다육이, 동백나무, 고무나무, 국화"),
        {
            "object": ("마당에 심어 보고 싶어", "물을 주면서 가꾸고 싶다"),
            "topic": ("물만 줘도 쑥쑥 자라겠다", "볕이 들면 새잎이 나겠어"),
        },
    ),
    "book": Kind(
        _nouns("소설책, 시집, 만화책, 그림책, 동화책, 잡지, 에세이, 자서전, 역사책, 위인전, 산문집, 백과사전"),
        {
            "object": ("밤새 읽어 보고 싶어", "처음부터 끝까지 읽고 싶다"),
            "topic": ("읽으면 생각이 깊어지겠다", "첫 장부터 술술 읽히겠어"),
        },
    ),
    "instrument": Kind(
        _nouns("기타, 피아노, 바이올린, 첼로, 플루트, 하모니카, 우쿨렐레, 가야금, 해금, 트럼펫, 색소폰, 클라리넷"),
        {
            "object": ("연주해 보고 싶어", "배워서 연주하고 싶다"),
            "topic": ("소리가 참 맑겠다", "연주하면 음색이 곱겠어"),
            "tool": ("한 곡 연주하고 싶네", "좋아하는 노래를 연주해 줘"),
        },
    ),
    "vehicle": Kind(
        _nouns("자전거, 킥보드, 스쿠터, 오토바이, 요트, 유람선, 케이블카, 열기구, 기차, 카약, 캠핑카, 버스"),
        {
            "object": ("한번 타 보고 싶어", "타고 멀리 떠나고 싶다"),
            "topic": ("타면 바람이 시원하겠다", "타고 달리면 신나겠어"),
        },
    ),
}

SCENES: tuple[Scene, ...] = (
    Scene(("동네 카페", "루프톱 카페", "호텔 라운지", "브런치 가게"), ("drink", "food", "light", "seat", "book", "plant")),
    Scene(("캠핑장", "한옥 마당", "해변", "펜션"), ("food", "drink", "seat", "light", "bag", "vehicle", "instrument")),
    Scene(("옷방", "백화점", "빈티지 가게", "벼룩시장"), ("clothes", "shoes", "hat", "bag")),
    Scene(("거실", "침실", "원룸", "다락방"), ("seat", "light", "plant", "book", "clothes", "instrument")),
    Scene(("공방", "작업실", "문화 센터", "동아리방"), ("instrument", "book", "plant", "light", "bag")),
    Scene(("체육 대회", "주말 공원", "학교 운동장", "강변"), ("shoes", "hat", "vehicle", "drink", "clothes")),
    Scene(("제주도 여행", "강원도 여행", "항구 마을", "섬 여행"), ("vehicle", "hat", "food", "bag", "shoes")),
    Scene(("수목원", "별장", "시골집", "꽃 축제"), ("plant", "seat", "vehicle", "instrument", "hat", "book")),
)

CAPTIONS = (
    "{setting}에서 찍은 {first:과/와} {second}",
    "{setting} 사진 ({first}, {second})",
    "{first:과/와} {second:이/가} 함께 나온 {setting}",
    "{setting} 한쪽의 {first:과/와} {second}",
)

# The first utterance, by A; then B's answer, which posts the second photo.
POSTS = (
    "{setting}에서 찍은 사진 보여 줄게!",
    "이번에 {setting}에서 한 장 찍었어.",
    "{setting} 사진 하나 올릴게.",
    "드디어 {setting} 사진을 정리했어!",
)
REPLIES = (
    "멋지다! 나는 {setting} 사진을 올릴게.",
    "부럽다. 나도 {setting}에서 찍은 게 있어.",
    "오, 좋네! 이건 내 {setting} 사진이야.",
    "그렇구나. 나도 {setting} 사진 보낼게!",
)

# What is said of anything at all, so that it tells nothing of the answer. `whose` is 내 or 네.
REMARKS = (
    "{thing:이/가} 제일 먼저 눈에 들어온다.",
    "{whose} 사진에서는 {thing:이/가} 눈에 띄네.",
    "{whose} 사진 속 {thing:은/는} 볼수록 마음에 들어.",
    "{thing:을/를} 보니까 기분이 좋아진다.",
    "{thing} 나온 부분이 참 예뻐.",
    "{whose} 사진은 {thing} 덕분에 더 멋지다.",
    "{thing:은/는} 나도 좋아해.",
    "{thing:이/가} 그렇게 좋다고 하더라.",
    "{thing} 이야기는 친구한테도 들었어.",
    "거기 {thing:이/가} 있는 줄은 몰랐네!",
    "{thing:과/와} 잘 어울리는 배경이네.",
)
SMALL_TALK = (
    "사진을 참 잘 찍었다.",
    "요즘 날씨가 좋아서 다행이야.",
    "다음에는 같이 가자!",
    "거기 사람은 안 많았어?",
    "나도 주말에 시간이 나면 좋겠다.",
    "자세히 좀 보여 줘.",
)
_ANY = ("", "", "그러게. ", "맞아, ", "아, ", "그런데 ", "고마워! ", "솔직히 ")
_WISH = (*_ANY, "나는 ", "응, 나도 ")
OPENINGS: Mapping[Role, tuple[str, ...]] = {"object": _WISH, "topic": _ANY, "tool": _WISH, "place": _WISH}
ENDINGS = (".", "!", "…")
