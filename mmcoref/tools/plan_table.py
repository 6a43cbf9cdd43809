"""A plan as tables on a terminal, its verdict, and what would fit instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import LlamaConfig

from mmcoref.data.sampler import batches_per_epoch, optimizer_steps
from mmcoref.errors import UserError
from mmcoref.model.memory import FULL, PUBLISHED_SHAPES, Memory, training_flops
from mmcoref.run.narrow import print_table
from mmcoref.run.preflight import checkpoint_bytes
from mmcoref.run.terms import LORA_RANK, is_sharded, processes
from mmcoref.text import printable
from mmcoref.tools.plan import HOST_BYTES_PER_PROCESS, Plan, planned

UTILISATION = 0.4  # of the peak: what well-tuned training of such models reaches, with enough work in each pass
# An H100 SXM's operations a second, by its data sheet, without sparsity. PyTorch computes fp32 without tensor cores unless told.
_PEAK, _PEAK_OF = 989e12, {"32-true": 67e12, "64-true": 67e12}
_NAMES = (
    "weights",
    "gradients",
    "DDP buckets",
    "optimizer state",
    "half-precision copies",
    "gathered weights",
    "activations",
    "logits",
    "temporaries",
)
_PUBLISHED_WINDOW = 64  # records of an optimizer step: 8 GPUs, 2 on each, accumulated 4 times
_NODE = 8  # GPUs of a machine, as they are sold

Change = tuple[str, dict[str, dict[str, Any]]]  # options of the command line, and what they set


def show(plan: Plan, console: Console) -> None:
    """Prints the plan; the user's own text is printed as it is, never read as markup."""
    print_table(console, _memory(plan))
    print_table(console, _run(plan))
    device = "process" if plan.machine.cpu else "GPU"
    sources = f"Memory of a {device}: {plan.machine.source}. Lengths: {plan.lengths.source}. {plan.machine.note}"
    for line in (sources, verdict(plan)):
        console.print(Text(printable(line.strip())), soft_wrap=True)


def verdict(plan: Plan) -> str:
    """`fits: …`, or `does not fit: …, try …`, where what is to be tried fits by the same arithmetic."""
    peak, capacity = plan.need.peak, plan.machine.capacity
    said = f"{_gb(peak, places=_places(plan))} of {_gb(capacity)} GB ({peak / capacity:.0%}, of which plan uses up to {FULL:.0%})"
    if plan.fits:
        return f"fits: {said}."
    for options, other in ways_out(plan):
        checkpointing = " with gradient checkpointing" if other.need.step.checkpointing else ""
        return f"does not fit: {said}; try {options} ({_gb(other.need.peak)} GB{checkpointing})."
    return f"does not fit: {said}; try devices of {_gb(int(peak / FULL) + 10**8)} GB, as nothing else that plan knows of fits."


def ways_out(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """(options, the plan with them) of settings that fit, those nearest to the given ones first."""
    for options, change in _changes(plan):
        changed = plan.settings | {section: plan.settings[section] | values for section, values in change.items()}
        name, trainer = changed["model"]["name"], changed["trainer"]
        config = plan.terms.config if name == plan.settings["model"]["name"] else LlamaConfig(**PUBLISHED_SHAPES[name])
        machine = replace(plan.machine, processes=processes(trainer), nodes=trainer["num_nodes"])
        if (other := planned(changed, config, plan.lengths, machine)).fits:
            yield options, other


def _changes(plan: Plan) -> Iterator[Change]:
    model, data, trainer = (plan.settings[section] for section in ("model", "data", "trainer"))
    whole, adapters, several = not is_sharded(trainer), bool(model["lora_rank"]), plan.machine.processes
    if model["gradient_checkpointing"] is False:
        yield "--model.gradient_checkpointing true", {"model": {"gradient_checkpointing": True}}
    if data["micro_batch_size"]:
        yield "--data.micro_batch_size 1", {"data": {"micro_batch_size": 1}}
        yield (
            "--data.micro_batch_size 1 --model.gradient_checkpointing true",
            {"data": {"micro_batch_size": 1}, "model": {"gradient_checkpointing": True}},
        )
    rows = data["eval_batch_size"]
    for fewer in (rows // 2, rows // 4, 1):
        if 0 < fewer < rows:
            yield f"--data.eval_batch_size {fewer}", {"data": {"eval_batch_size": fewer}}
    if whole and not adapters and several > 1:
        yield "--trainer.strategy sharded", {"trainer": {"strategy": "sharded"}}
    if not adapters:
        yield "--config configs/lora.yaml", {"model": {"lora_rank": LORA_RANK}, "trainer": {"strategy": "ddp"}}
    for nodes in (1, 2, 4, 8) if not adapters and not plan.machine.cpu else ():
        records = data["batch_size"] * trainer["accumulate_grad_batches"] * several  # of an optimizer step, which stay
        accumulate, rest = divmod(records, _NODE * nodes * data["batch_size"])
        if _NODE * nodes > several and not rest:
            more = {"strategy": "sharded", "devices": _NODE, "num_nodes": nodes, "accumulate_grad_batches": accumulate}
            yield " ".join(f"--trainer.{key} {value}" for key, value in more.items()), {"trainer": more}
    if model["name"] in PUBLISHED_SHAPES and data["prompt"] != "chat":  # the smaller ones have no chat template
        names = list(PUBLISHED_SHAPES)
        yield from ((f"--model.name {name}", {"model": {"name": name}}) for name in reversed(names[: names.index(model["name"])]))


# ---------------------------------------------------------------------- tables


def _memory(plan: Plan) -> Table:
    need, machine = plan.need, plan.machine
    how = "sharded" if is_sharded(plan.settings["trainer"]) else "ddp" if machine.processes > 1 else "alone"
    device = ("process", "processes") if machine.cpu else ("GPU", "GPUs")
    of = f"each of {machine.processes} {device[1]}" if machine.processes > 1 else f"one {device[0]}"
    title = f"{plan.settings['model']['name']}: memory of {of} at its peak, {how}, {need.step.precision}"
    table = Table(title=Text(printable(title)), title_justify="left")
    table.add_column("training", overflow="fold")
    table.add_column("GB", justify="right")
    table.add_column(f"of {_gb(machine.capacity)} GB", justify="right")
    about, places = _about(plan), _places(plan)

    def add(name: str, size: int, *, last: bool = False) -> None:
        table.add_row(Text(name), _gb(size, places=places), f"{size / machine.capacity:.1%}", end_section=last)

    absent = {"buckets": how != "ddp", "gathered": how != "sharded"}
    for name, field, size in zip(_NAMES, Memory._fields, need.training, strict=True):
        if not absent.get(field):
            add(name + about.get(field, ""), size, last=field == Memory._fields[-1])
    add("total", need.training.total)
    if rows := plan.terms.eval_rows:
        add(f"total between epochs ({_records(rows)} validated at a time)", need.validation.total)
    return table


def _places(plan: Plan) -> int:
    """Digits behind the point of what a device takes: more for a model that takes little."""
    return 1 if plan.need.peak > 10**9 else 3


def _about(plan: Plan) -> dict[str, str]:
    """What entries were reckoned for."""
    step, shape, estimated = plan.need.step, plan.terms.shape, ", estimated" if plan.lengths.estimated else ""
    return {
        "weights": f" ({shape.parameters:,} parameters)",
        "gradients": f" ({shape.trainable:,} trained)",
        "buckets": " (gradients lie in them)",
        "optimizer": " (AdamW, fused: no temporaries)",
        "activations": f" ({_records(step.records)}, {step.tokens:,} tokens{estimated})",
        "logits": f" ({step.targets:,} answer tokens{estimated})",
    }


def _run(plan: Plan) -> Table:
    step, machine, trained, estimated = plan.need.step, plan.machine, plan.lengths.trained, " (estimated)" if plan.lengths.estimated else ""
    window = step.records * step.micro_batches
    steps, flops = run_length(plan)
    table = Table(title="Run", title_justify="left", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_row("train records", f"{len(trained):,}, of {sum(trained) / len(trained):.0f} tokens, at most {max(trained):,}{estimated}")
    table.add_row("optimizer step", f"{_records(window * machine.processes)}, {window:,} a process{_as_published(plan)}")
    together = "in one row" if plan.need.packed else "padded to one length"
    table.add_row("micro-batches", f"{step.micro_batches:,} of {_records(step.records)} {together}")
    table.add_row("gradient checkpointing", "yes" if step.checkpointing else "no")
    table.add_row("optimizer steps", f"{steps:,}")
    table.add_row("training", f"{flops:.2e} FLOPs{estimated}; {_time(plan, flops)}")
    table.add_row(
        "memory of each machine", f"{_gb(plan.host_memory)} GB ({_gb(HOST_BYTES_PER_PROCESS)} GB a process for libraries, assumed)"
    )
    table.add_row("disk for checkpoints", f"{_gb(disk(plan), places=_places(plan))} GB, with the one that replaces another")
    return table


def _as_published(plan: Plan) -> str:
    """That a published model's step has other records than it had, as it has on fewer GPUs if nothing else is changed."""
    step, processes = plan.need.step, plan.machine.processes
    if plan.settings["model"]["name"] not in PUBLISHED_SHAPES or step.records * step.micro_batches * processes == _PUBLISHED_WINDOW:
        return ""
    accumulate, rest = divmod(_PUBLISHED_WINDOW, processes * plan.settings["data"]["batch_size"])
    how = f", which {processes} processes do not divide" if rest else f": --trainer.accumulate_grad_batches {accumulate}"
    return f"; {_PUBLISHED_WINDOW} as published{how}"


def _time(plan: Plan, flops: float) -> str:
    if plan.machine.cpu:
        return "hours are not estimated for processors"
    peak = _PEAK_OF.get(plan.need.step.precision, _PEAK)
    seconds = flops / (plan.machine.processes * peak * UTILISATION)
    unit, of_them = next((name, each) for name, each in (("hours", 3600), ("minutes", 60), ("seconds", 1)) if seconds >= each or each == 1)
    took = f"{seconds / of_them:.2g} {unit}"
    return f"{took} at {UTILISATION:.2f} of an H100's {peak / 1e12:.0f} TFLOP/s, assumed, without validation"


# ---------------------------------------------------------------------- the run


def run_length(plan: Plan) -> tuple[int, float]:
    """(optimizer steps of the fit, their floating-point operations).

    Raises:
        UserError: the run has no end, or too few records for a step of the published recipe.
    """
    trainer, step, lengths = plan.settings["trainer"], plan.need.step, plan.lengths
    epoch = batches_per_epoch(
        len(lengths.trained), batch_size=step.records, accumulate=step.micro_batches, num_replicas=plan.machine.processes,
        whole_windows=plan.settings["data"]["recipe"] == "published",
    )  # fmt: skip
    if not epoch:
        raise UserError(
            f"data.recipe: published leaves out what does not fill an optimizer step, and {len(lengths.trained)} records fill none."
        )
    ends = {name: trainer.get(name) for name in ("max_epochs", "max_steps")}
    steps = optimizer_steps(epoch, accumulate=step.micro_batches, limit=trainer.get("limit_train_batches"), **ends)
    an_epoch = training_flops(plan.terms.shape, lengths.trained, sum(lengths.answers), checkpointing=step.checkpointing)
    return steps, an_epoch * steps / -(-epoch // step.micro_batches)


def disk(plan: Plan) -> int:
    """Bytes of checkpoints: the last one, the best one where one is chosen, and one that is being written."""
    files = 3 if plan.settings["data"]["val_size"] else 2
    return files * checkpoint_bytes(plan.terms.shape, plan.settings["model"]["name"])


def _records(n: int) -> str:
    return f"{n:,} record" + ("" if n == 1 else "s")


def _gb(size: int, *, places: int = 1) -> str:
    return f"{size / 1e9:,.{places}f}"
