"""A batch of dialogues -> predictions, whoever asks: a trainer's steps or `mmcoref.load`."""

from __future__ import annotations

from typing import Any, Literal

from mmcoref.data.batch import EvalBatch
from mmcoref.data.encode import Encoder
from mmcoref.evaluation.prediction import Prediction
from mmcoref.model.scoring import Agree, alone, answer, answer_as_published

Decoding = Literal["greedy", "constrained", "published"]


def predict(
    lm: Any, encoder: Encoder, batch: EvalBatch, *, decoding: Decoding, max_new_tokens: int, seed: int, agree: Agree = alone
) -> list[Prediction]:
    """What the model says of the batch's valid rows.

    Args:
        lm: the causal language model.
        encoder: what the batch was encoded with.
        batch: B dialogues.
        decoding: `greedy`: the most probable token, until the stop token; `constrained`: the same, but nothing can be written
            but one of the four options; `published`: 3 beams with sampling, one dialogue at a time.
        max_new_tokens: the most that greedy decoding may generate.
        seed: of published decoding, which draws from it and the record's place in its file alone.
        agree: see `answer`.
    """
    answers = answer(lm, batch, stop_id=encoder.stop_id, max_new_tokens=max_new_tokens if decoding == "greedy" else 0, agree=agree)
    by_letter, logprobs = answers.by_letter.tolist(), answers.option_logprobs.tolist()
    predictions = []
    for row, (example, counts) in enumerate(batch.rows):
        together = agree is not alone
        if not counts and not (decoding == "published" and together):
            continue
        if decoding == "greedy":
            ids = answers.generated[row]
        elif decoding == "constrained":
            ids = [*example.option_ids[by_letter[row]], encoder.stop_id]
        else:
            prompt = encoder.published_prompt_ids(example.record)
            drawn = hash((seed, example.index)) & 0x7FFFFFFFFFFFFFFF
            ids = answer_as_published(lm, prompt, stop_id=encoder.stop_id, pad_id=encoder.pad_id, seed=drawn, together=together)
        if not counts:
            continue  # it was answered for the company of other processes
        predictions.append(
            Prediction(
                index=example.index,
                record=example.record,
                text=encoder.decode(ids),
                stopped=encoder.stop_id in ids,
                option_logprobs=tuple(logprobs[row]),
                by_letter=by_letter[row],
                order=example.order,
                newline_in_prompt=encoder.newline_in_prompt and decoding != "published",
            )
        )
    return predictions
