"""Model name -> tokenizer: from the hub, from a folder, or trained on the train records for `tiny`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmcoref.data.hub import fetch
from mmcoref.data.pretrained import read_tokenizer
from mmcoref.errors import UserError, first_line

TINY, TINY_RANDOM = "tiny", "tiny-random"  # the embedded model, from its shipped backbone or from random weights
TINY_NAMES = (TINY, TINY_RANDOM)
TINY_VOCABULARY = 4096
_TINY_BOS, _TINY_EOS, _TINY_PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"

# What becomes one token if it is frequent: the parts of the published form that never vary, so that a record is a
# quarter shorter, and a word with the space before it. An option's letter stands alone, as it is the answer.
_TINY_PIECES = "|".join(
    (
        r"## [A-Z][a-z]+\n",
        r"마지막 [AB]의 발화에서",
        r" A와 B 중 어느 사진에 포함된 어느 물건인가\?\n",
        r"[A-D]\)",
        r" [AB](?:가|의) 올린 사진 속",
        r"[AB]의 사진:",
        r"[AB]: ['\"]?",
        r" ?[\p{L}\p{M}\p{N}]+",
        r" ?[^\s\p{L}\p{M}\p{N}]+\n?",
        r"\s",
    )
)

# Tokens that a vocabulary keeps free for uses like padding. Llama 3.1 and later have the first, Llama 3 the second.
_RESERVED = re.compile(r"<\|finetune_right_pad_id\|>|<\|reserved_special_token_\d+\|>|<unused\d+>")

TokenizerFiles = dict[str, str]


def load_tokenizer(name: str, train_texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Args:
        name: a hub name, a folder, or `tiny`.
        train_texts: what the tokenizer of `tiny` and `tiny-random` is trained on; not read for any other name.

    Raises:
        UserError: the folder or hub repository has no tokenizer that can be loaded.
    """
    if name in TINY_NAMES:
        return train_tokenizer(train_texts)
    try:
        tokenizer = read_tokenizer(fetch(name))
    except UserError:  # of the hub
        raise
    except Exception as error:  # whatever its class makes of hostile or broken files
        raise UserError(f"model.name {name!r}: its tokenizer cannot be loaded: {first_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.name {name!r}: expected a tokenizer with an end-of-text token, which answers are trained to stop with; it has none."
        )
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocabulary: int = TINY_VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose tokens are mostly whole words; `decode` gives back any text unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_TINY_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_TINY_PAD, _TINY_BOS, _TINY_EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_TINY_BOS} $A", special_tokens=[(_TINY_BOS, tokenizer.token_to_id(_TINY_BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=_TINY_BOS,
        eos_token=_TINY_EOS,
        pad_token=_TINY_PAD,
        clean_up_tokenization_spaces=False,
    )


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills batches: the pad token, else a reserved token, else the end-of-text token.

    No token is ever added: the embedding keeps its shape, and masks, never ids, decide what is attended to and
    trained, so that any id can fill.
    """
    pad: Any = tokenizer.pad_token_id
    if pad is not None:
        return int(pad)
    reserved = sorted(token for token in tokenizer.get_added_vocab() if _RESERVED.fullmatch(token))
    filler: Any = tokenizer.convert_tokens_to_ids(reserved[0]) if reserved else tokenizer.eos_token_id
    return int(filler)


def pack_tokenizer(tokenizer: PreTrainedTokenizerBase) -> TokenizerFiles:
    """The tokenizer's files, file name -> text, for a checkpoint that stands alone."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {str(file.relative_to(folder)): file.read_text("utf-8") for file in sorted(Path(folder).rglob("*")) if file.is_file()}


def unpack_tokenizer(files: TokenizerFiles) -> PreTrainedTokenizerBase:
    """Make the tokenizer that `pack_tokenizer` packed.

    Raises:
        UserError: it is none of ours.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        try:
            for name, text in files.items():
                path = (folder / name).resolve()
                if not path.is_relative_to(folder):
                    raise UserError(f"the checkpoint's tokenizer has a file outside its folder: {name!r}; it is not one of ours.")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, "utf-8")
            return read_tokenizer(folder)
        except UserError:
            raise
        except Exception as error:  # whatever its class makes of hostile or broken files
            reason = first_line(error).replace(str(folder), "it")
            raise UserError(f"the checkpoint's tokenizer cannot be loaded: {reason}") from None
