"""Makes the shipped backbone of `tiny` from a checkpoint of `tiny-random`: `python -m mmcoref.model.ship CHECKPOINT`.

The shipped file was made by

    mmcoref fit --config configs/tiny.yaml --model.name tiny-random --model.lr 1e-3 --data.sample_train 70400
    mmcoref test --ckpt_path last
    python -m mmcoref.model.ship lightning_logs/version_0/checkpoints/last.ckpt

Not every such run learns: from random weights a model stays at chance for more than a thousand steps, and some data
orders keep it there to the end. The test in the middle tells.
"""

from __future__ import annotations

import sys

import torch

from mmcoref.data.tokenizer import unpack_tokenizer
from mmcoref.model.backbone import TINY_WEIGHTS, save_backbone


def main(checkpoint: str) -> None:
    """Writes the checkpoint's weights as the shipped backbone."""
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state = {name.removeprefix("lm."): weights for name, weights in stored["state_dict"].items() if name.startswith("lm.")}
    save_backbone(state, unpack_tokenizer(stored["mmcoref_tokenizer"]), TINY_WEIGHTS)


if __name__ == "__main__":
    main(sys.argv[1])
