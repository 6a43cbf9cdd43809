"""How much memory a process takes to load a model, sharded or whole: run by `test_loading_peaks.py` under torchrun.

Usage: loading_worker.py MODEL_FOLDER sharded|ddp OUT_FOLDER
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from mmcoref.model.backbone import Place, load_backbone
from mmcoref.model.loading import lay_out
from mmcoref.run.ending import leave, part


def private_bytes() -> int:
    """Memory of this process that is no file's: pages of a mapped file are the system's to give and take."""
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


class Peak:
    """The most private memory that is seen, once a millisecond."""

    def __enter__(self) -> Peak:
        self.most, self._running = private_bytes(), True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._running:
            self.most = max(self.most, private_bytes())
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()


def main(folder: str, how: str, out: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),)) if how == "sharded" else None
    from transformers import AutoConfig, AutoTokenizer

    lay_out(AutoConfig.from_pretrained(folder))  # what this imports is not what loading takes
    tokenizer = AutoTokenizer.from_pretrained(folder)
    distributed.barrier()
    bare = private_bytes()
    with Peak() as peak:
        lm = load_backbone(folder, tokenizer, Place(mesh=mesh))
    weights = sum(p.numel() for p in lm.parameters()) * 4
    (out / f"{how}{distributed.get_rank()}.json").write_text(json.dumps({"bare": bare, "peak": peak.most, "weights": weights}), "utf-8")
    distributed.barrier()
    part()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    leave(0)
