"""What an answer says: the options that it names, and in which role."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from mmcoref.evaluation.parsing.tokens import Mask


class Role(Enum):
    """What a statement says of its options."""

    CLAIMED = auto()  # is the answer: `정답은 B입니다`, `B가 맞습니다`
    ASSERTED = auto()  # is: `B입니다`, `캠핑 의자를 가리킵니다`, or stands alone
    OPEN = auto()  # is asked for, supposed, or one of several: `B인가요`, `A 또는 B`
    DENIED = auto()  # is not: `A가 아니라`, `A. 자서전은 책이므로 제외됩니다`
    MENTIONED = auto()  # none of these


class Target(NamedTuple):
    """An option as it is named: by its letter, its text, or both.

    Attributes:
        letter: the option of the letter; empty if there is none.
        text: the options that the text can mean; empty if there is none.
        whole: whether it is an option's whole text, and not its noun alone.
        close: what closes the letter; empty for a bare one.
    """

    letter: Mask
    text: Mask
    whole: bool
    close: str

    @property
    def mask(self) -> Mask:
        """The options that can be meant; the letter counts, if there is one."""
        return self.letter or self.text

    @property
    def bare(self) -> bool:
        """Whether it is a letter alone, as a speaker's name could be."""
        return not self.close and not self.text


class Statement(NamedTuple):
    """What a sentence says of one option, or of several joined ones.

    Attributes:
        role: what it says.
        targets: the options as they are named.
        opens: whether it is the first thing in the text, as an answer in the published form.
        ends: whether nothing follows in its sentence but a copula.
        has_particle: whether a particle is attached.
        starts: whether it is the first thing in its sentence.
    """

    role: Role
    targets: tuple[Target, ...]
    opens: bool = False
    ends: bool = False
    has_particle: bool = False
    starts: bool = False

    @property
    def mask(self) -> Mask:
        """The options that all targets can mean."""
        return common(self.targets)


def common(targets: Sequence[Target]) -> Mask:
    """Return the options that all targets can mean."""
    mask = targets[0].mask
    for target in targets:
        mask &= target.mask
    return mask
