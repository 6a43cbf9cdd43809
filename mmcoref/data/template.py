"""A tokenizer's chat template: a program of somebody else's, run within limits, and on the same day for ever.

transformers renders templates in jinja2's sandbox, which reaches no file and no network; what the sandbox does not limit is
time and memory, and it knows what day it is.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mmcoref.errors import UserError, first_line

Messages = Sequence[Mapping[str, str]]

# Llama 3.2's chat template writes today's date into the prompt unless it is given one, others ask the clock for parts of
# it: a model would be tested on another prompt than it was trained on. This is the date that Llama 3.1's falls back to.
DATE = "26 Jul 2024"
# That date at midnight, by the letter that `strftime` knows each part of it by; in English, whatever the locale.
_PARTS = {
    "a": "Fri", "A": "Friday", "b": "Jul", "B": "July", "c": "Fri Jul 26 00:00:00 2024", "C": "20", "d": "26",
    "D": "07/26/24", "e": "26", "f": "000000", "F": "2024-07-26", "g": "24", "G": "2024", "h": "Jul", "H": "00", "I": "12",
    "j": "208", "k": " 0", "l": "12", "m": "07", "M": "00", "n": "\n", "p": "AM", "P": "am", "r": "12:00:00 AM", "R": "00:00",
    "s": "1721952000", "S": "00", "t": "\t", "T": "00:00:00", "u": "5", "U": "29", "V": "30", "w": "5", "W": "30",
    "x": "07/26/24", "X": "00:00:00", "y": "24", "Y": "2024", "z": "", "Z": "", "%": "%",
}  # fmt: skip
_BARE = {f"-{letter}": str(int(part)) if part.strip().isdigit() else part for letter, part in _PARTS.items()}  # 7 for 07
# Defined in front of a template, it hides the `strftime_now` that transformers gives to it. The line break after it goes
# with the block, as transformers trims blocks, so that the template's own first characters are kept.
_PINNED = (
    "{%- macro strftime_now(format='') -%}"
    "{%- set at = namespace(directive='') -%}"
    "{%- for letter in format -%}"
    "{%- set directive = at.directive ~ letter -%}"
    "{%- if not at.directive and letter != '%' -%}{{ letter }}"
    "{%- elif directive in ('%', '%-') -%}{%- set at.directive = directive -%}"
    f"{{%- else -%}}{{{{ {_PARTS | _BARE!r}.get(directive[1:], directive) }}}}{{%- set at.directive = '' -%}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endmacro %}\n"
)

_SECONDS = 5  # of CPU time for all probes together, which take milliseconds
_PATIENCE = 60.0  # seconds that a busy machine may need for them
_MEMORY = 2**30  # bytes above what the process has already
_TIMES = 16  # each probe is rendered: of two outcomes drawn at random, both are seen
_LONGEST = 100_000  # characters of a rendered probe, which has a thousand
_GROWTH = 8  # by which a record may be longer in a chat than the probe is, for its own length
_PROBES: tuple[tuple[Messages, bool], ...] = (
    (({"role": "user", "content": "Q"},), True),
    (({"role": "user", "content": "## Conversation\nA: '저거 봐!'\n" * 20},), True),
    (({"role": "user", "content": "Q"}, {"role": "assistant", "content": "## Solution\nA"}), False),
)
_USE_BASE = "use --data.prompt base, or another model"


class ChatTemplate:
    """A tokenizer's chat template, tried out once in a process of its own that is ended where it does not end itself.

    Args:
        tokenizer: with a chat template.

    Raises:
        UserError: it raises, takes too long, takes too much memory, or writes another text each time.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        try:
            own = tokenizer.get_chat_template()
        except Exception as error:  # several templates, none of which is the default one
            raise _refused(f"cannot be chosen: {first_line(error)}") from None
        self._template = _PINNED + own if "strftime_now" in own else own
        self._longest = _try_out(self)

    def render(self, messages: Messages, *, opened: bool = False) -> str:
        """Render a chat.

        Args:
            messages: turns of user and assistant.
            opened: whether the assistant's answer is to follow.

        Raises:
            UserError: the template cannot, or writes much more than it has been given.
        """
        try:
            text = self._render(messages, opened)
        except Exception as error:  # whatever its author has raised, or not thought of
            raise _refused(f"cannot be rendered: {first_line(error)}") from None
        given = sum(len(message["content"]) for message in messages)
        if len(text) > self._longest + _GROWTH * given:
            raise _refused(f"makes {len(text):,} characters of a dialogue of {given:,}")
        return text

    def _render(self, messages: Messages, opened: bool) -> str:
        chat = [dict(message) for message in messages]
        return str(
            self._tokenizer.apply_chat_template(
                chat, chat_template=self._template, tokenize=False, add_generation_prompt=opened, date_string=DATE
            )
        )


def _try_out(template: ChatTemplate) -> int:
    """Render the probes in a process of its own.

    Returns:
        Characters of the longest.

    Raises:
        UserError: they cannot be.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return _LONGEST  # Windows: neither such a process nor such limits
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_probe, args=(template, sending), daemon=True)
    with warnings.catch_warnings():
        # Python 3.12 warns of threads that hold locks; the child takes none but the interpreter's own.
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    sending.close()
    try:
        found = json.loads(receiving.recv_bytes()) if receiving.poll(_PATIENCE) else {}
    except EOFError:  # it has been ended
        found = {}
    child.kill()
    child.join()
    if "wrong" in found:
        raise _refused(found["wrong"])
    if "longest" not in found:
        raise _refused(f"takes more than {_SECONDS} seconds or {_MEMORY >> 30} GiB of memory for a short dialogue")
    return int(found["longest"])


def _probe(template: ChatTemplate, answer: Connection) -> None:
    """Render the probes within limits; in the child."""
    try:
        _limit()
        found = _rendered(template)
    except MemoryError:
        return
    except Exception as error:
        found = {"wrong": f"cannot be rendered: {first_line(error)}"}
    answer.send_bytes(json.dumps(found).encode())


def _rendered(template: ChatTemplate) -> dict[str, Any]:
    longest = 0
    for messages, opened in _PROBES:
        texts = set()
        for seed in range(_TIMES):
            random.seed(seed)
            texts.add(template._render(messages, opened))
        longest = max(longest, *map(len, texts))
        if len(texts) > 1:
            return {"wrong": "writes another text each time, so that no model could be tested on what it was trained on"}
    if longest > _LONGEST:
        return {"wrong": f"makes {longest:,} characters of a short dialogue"}
    return {"longest": longest}


def _limit() -> None:
    """Have the system end this process where it takes too much time, and refuse it more memory."""
    import resource

    with contextlib.suppress(OSError):  # of which Linux knows alone
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + _MEMORY)
    _lower(resource.RLIMIT_CPU, _SECONDS)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(limit: int, value: int) -> None:
    import resource

    _, hard = resource.getrlimit(limit)
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(limit, (soft, hard))


def _refused(what: str) -> UserError:
    return UserError(f"data.prompt: chat: this tokenizer's chat template {what}; {_USE_BASE}.")
