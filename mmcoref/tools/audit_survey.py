"""Records, one after another -> columns of numbers and digests, from which an audit is made once their number is known.

Legend of shapes: N records.
"""

from __future__ import annotations

from array import array
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmcoref.data.record import LETTERS, Record, speaker_of
from mmcoref.data.records import digest_of, digests_from
from mmcoref.data.split import connected, group_numbers
from mmcoref.data.unicode import canonical, fold
from mmcoref.evaluation.floors import Floor, rules
from mmcoref.tools.audit_oddities import CHECKS, owners, quotes, texts

LAST_SPEAKER = "photo of the speaker not last to speak"
_OPTIONS = len(LETTERS)
_DIGESTS = ("content", "dialogue", "caption_a", "caption_b", "options")


class Survey:
    """What an audit needs of N records, some 150 bytes for each; their texts are not kept."""

    def __init__(self) -> None:
        self._rules = rules("A")[1:]  # the first one depends on the split
        self._gold = array("b")
        self._owners = array("B")  # numbers of `owner_orders`
        self._orders: dict[str, int] = {}
        self._odd = array("b")
        self._quoted = array("b")
        self._characters = array("i")
        self._right = array("b")
        self._digests = {name: bytearray() for name in _DIGESTS}
        self.utterances = self.quoted_utterances = 0
        self.shortest, self.longest = 0, 0  # dialogues, in utterances

    def __len__(self) -> int:
        return len(self._gold)

    def add(self, record: Record) -> None:
        """Look at a record with a solution.

        Raises:
            ValueError: it has none.
        """
        said = record.conversation
        self.shortest = min(self.shortest or len(said), len(said))
        self.longest = max(self.longest, len(said))
        self.utterances += len(said)
        self.quoted_utterances += sum(fold(text[3]) in ("'", '"') for text in said)
        self._gold.append(LETTERS.index(record.gold.letter))
        self._owners.append(self._orders.setdefault(owners(record), len(self._orders)))
        self._odd.extend(int(odd(record)) for _, _, _, odd in CHECKS)
        self._quoted.extend((quotes(record, said[-1:]), quotes(record, said)))
        self._characters.append(sum(map(len, texts(record))))
        self._add_rules(record)
        content = (*texts(record), record.gold.letter, str(len(said)))
        self._digests["content"] += digest_of(content, form=canonical)
        self._digests["dialogue"] += digest_of(said)
        self._digests["caption_a"] += digest_of(record.image_descriptions[:1])
        self._digests["caption_b"] += digest_of(record.image_descriptions[1:])
        self._digests["options"] += digest_of(record.choices)

    def _add_rules(self, record: Record) -> None:
        for rule in self._rules:
            named, photo = rule.right(record)
            self._right.extend((bool(named), photo))
        owner = record.gold.owner
        self._right.append(owner is not None and owner != speaker_of(record.conversation[-1]))

    @property
    def gold(self) -> NDArray[np.int8]:
        """(N,) the place of each record's right option."""
        return np.frombuffer(self._gold, np.int8)

    @property
    def owner_numbers(self) -> NDArray[np.uint8]:
        """(N,) the place in `owner_orders` of each record's owners."""
        return np.frombuffer(self._owners, np.uint8)

    @property
    def owner_orders(self) -> list[str]:
        """The options' owners in order, such as `AABB`, as they first occurred."""
        return list(self._orders)

    def odd(self, check: int) -> NDArray[np.int8]:
        """(N,) how often a check found something in each record."""
        return np.frombuffer(self._odd, np.int8).reshape(-1, len(CHECKS))[:, check]

    @property
    def quoted_last(self) -> NDArray[np.int8]:
        """(N,) whether the question quotes words of the last utterance."""
        return np.frombuffer(self._quoted, np.int8).reshape(-1, 2)[:, 0]

    @property
    def quoted_somewhere(self) -> NDArray[np.int8]:
        """(N,) whether the question quotes words of any utterance."""
        return np.frombuffer(self._quoted, np.int8).reshape(-1, 2)[:, 1]

    @property
    def characters(self) -> NDArray[np.int32]:
        """(N,) characters of dialogue, captions, question and options."""
        return np.frombuffer(self._characters, np.int32)

    @cached_property
    def contents(self) -> NDArray[np.int64]:
        """(N,) a number for each record, the same for records that are the same but for their ids."""
        return group_numbers(digests_from(self._digests["content"]))

    @cached_property
    def dialogues(self) -> NDArray[np.int64]:
        """(N, 1) the same for dialogues."""
        return group_numbers(digests_from(self._digests["dialogue"]))[:, None]

    @cached_property
    def captions(self) -> NDArray[np.int64]:
        """(N, 2) the same for captions."""
        both = [digests_from(self._digests[name]) for name in ("caption_a", "caption_b")]
        return group_numbers(np.concatenate(both)).reshape(2, -1).T

    @cached_property
    def option_lists(self) -> NDArray[np.int64]:
        """(N, 1) the same for lists of options."""
        return group_numbers(digests_from(self._digests["options"]))[:, None]

    def clusters(self, n: int) -> NDArray[np.int64]:
        """(n,) the cluster numbers of the first n records, as the split numbers them."""
        return connected([digests_from(self._digests[name])[:n] for name in ("dialogue", "options")])

    def floors(self, train: NDArray[np.int64], test: NDArray[np.int64]) -> list[Floor]:
        """Count the test records that rules without a model get right; see `mmcoref.evaluation.floors`.

        Args:
            train: indices of the train part.
            test: indices of the test part.

        Raises:
            ValueError: one of them is empty.
        """
        if not len(train) or not len(test):
            raise ValueError(f"expected train and test records, got {len(train)} and {len(test)}")
        counts = np.bincount(self.gold[train], minlength=_OPTIONS)
        majority = int(counts.argmax())  # the earlier of equals
        owner_of = np.array([list(order) for order in self.owner_orders])[self.owner_numbers[test]]  # (test, 4) letters
        gold = self.gold[test]
        gold_owner = np.take_along_axis(owner_of, gold[:, None].astype(np.intp), 1)[:, 0]
        photo = (owner_of[:, majority] == gold_owner) & (gold_owner != "-")
        found = [Floor(f"always {LETTERS[majority]}", int((gold == majority).sum()), int(photo.sum()), len(test))]
        right = np.frombuffer(self._right, np.int8).reshape(-1, 2 * len(self._rules) + 1)[test].sum(0, dtype=np.int64).tolist()
        for number, rule in enumerate(self._rules):
            named = right[2 * number] if rule.names_options else None
            found.append(Floor(rule.name, named, right[2 * number + 1], len(test)))
        return [*found, Floor(LAST_SPEAKER, None, right[-1], len(test))]
