"""What a model's shape allows: the ids that its embedding has rows for, and the positions that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from mmcoref.data.encode import Encoder
from mmcoref.data.examples import Examples
from mmcoref.errors import UserError
from mmcoref.model.scoring import PUBLISHED_LENGTH


def check_ids(config: PretrainedConfig, encoder: Encoder, parts: Sequence[Examples], name: str) -> None:
    """Check that every id that the model will be given has a row in its embedding.

    Args:
        config: of the model.
        encoder: whose tokenizer made the examples, and whose pad token fills batches.
        parts: all examples of the run.
        name: of the model, for the message.

    Raises:
        UserError: an id has no row; looking it up would be an IndexError, for a pad token only after an epoch of packed rows.
    """
    rows: Any = getattr(config.get_text_config(), "vocab_size", None)
    if rows is None:
        return
    named = {encoder.pad_id: "pad token", encoder.stop_id: "stop token"}
    largest = max((part.largest_id for part in parts), default=0)
    beyond = [token for token in (*named, largest) if token >= rows]
    if not beyond:
        return
    token = beyond[0]
    what = named.get(token, "token")
    text = encoder.tokenizer.convert_ids_to_tokens(token)
    fix = "set pad_token in its tokenizer_config.json to a token that has one, or " if token == encoder.pad_id else ""
    raise UserError(
        f"model.name {name}: the tokenizer's {what} {text!r} has the id {token}, and the model's embedding has {rows} rows, "
        f"0 to {rows - 1}: {fix}save the model after model.resize_token_embeddings({max(len(encoder.tokenizer), token + 1)})."
    )


def check_training_length(config: PretrainedConfig, examples: Examples, name: str, *, width: int | None) -> None:
    """Check that the model has a position for every token of a training row.

    Args:
        config: of the model.
        examples: the train part.
        name: of the model, for the message.
        width: what rows are padded and cut to, as published; by default a row is as long as its record.

    Raises:
        UserError: a row is longer than the model's positions.
    """
    positions = _positions(config)
    if positions is None:
        return
    if width is not None and width > positions:
        raise UserError(
            f"model.name {name}: it knows {positions} positions (max_position_embeddings in its config), and data.recipe published "
            f"pads each record to data.max_tokens = {width} tokens: choose --data.max_tokens {positions}."
        )
    longest = int(examples.trained_tokens.max())
    if width is None and longest > positions:
        raise UserError(f"{_too_long('train record', longest, name, positions)}.")


def check_answering_length(config: PretrainedConfig, examples: Examples, name: str, *, max_new_tokens: int, as_published: bool) -> None:
    """Check that the model has a position for every token of a prompt, of each option after it, and of what may be generated.

    Args:
        config: of the model.
        examples: what is asked.
        name: of the model, for the message.
        max_new_tokens: tokens that may be generated; 0 if nothing is.
        as_published: whether the published decoding generates.

    Raises:
        UserError: there are more tokens than positions.
    """
    positions = _positions(config)
    if positions is None:
        return
    longest = int(examples.tokens.max())
    if longest > positions:
        raise UserError(f"{_too_long('record', longest, name, positions)}.")
    if as_published and positions < PUBLISHED_LENGTH:
        raise UserError(
            f"model.decoding published writes on to {PUBLISHED_LENGTH} tokens, and model.name {name} knows {positions} positions "
            "(max_position_embeddings in its config): choose --model.decoding greedy."
        )
    prompt = int(examples.prompt_tokens.max())
    # The last generated token is never fed back, so that it needs no position.
    if prompt + max_new_tokens - 1 > positions:
        raise UserError(
            f"the longest prompt has {prompt} tokens, {max_new_tokens} may be generated after it, and model.name {name} knows "
            f"{positions} positions (max_position_embeddings in its config): lower --model.max_new_tokens to {positions - prompt + 1}, "
            f"or choose --data.max_tokens {positions - max_new_tokens + 1} --data.overlength trim."
        )


def _positions(config: PretrainedConfig) -> int | None:
    """Positions of the model; None if its config names no limit."""
    positions: Any = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def _too_long(what: str, tokens: int, name: str, positions: int) -> str:
    return (
        f"the longest {what} has {tokens} tokens, and model.name {name} knows {positions} positions (max_position_embeddings in its "
        f"config): choose --data.max_tokens {positions} with --data.overlength trim or drop"
    )
