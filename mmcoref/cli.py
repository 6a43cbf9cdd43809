"""The `mmcoref` command: which program is meant. Torch and Lightning take seconds to import and wait until one needs them."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mmcoref import __version__
from mmcoref.errors import USER_ERROR_EXIT, Stopped, UserError
from mmcoref.ranges import RANGES
from mmcoref.run import ending, launchers, slurm
from mmcoref.run.ending import leave
from mmcoref.run.output import broken_pipe, end_outputs, protect_outputs
from mmcoref.run.peers import PEERS
from mmcoref.run.signals import NOTICE, SIGNALS
from mmcoref.text import PrintableFormatter, printable

log = logging.getLogger(__name__)

_OTHERS_SECONDS = 60.0  # for the other processes of this machine to end

_TRAINER_PROGRAMS = {
    "fit": "train a model on the train records",
    "validate": "measure a model on the validation records",
    "test": "measure a model on the test records and write the run's record",
    "predict": "answer new records, with or without a solution",
}
_OTHER_PROGRAMS = {
    "audit": "say what is in a data file, before anything is trained",
    "compare": "set tested runs side by side, record by record",
    "plan": "say what a fit would need, before anything is loaded",
    "sample": "write generated dialogues in the published form",
}
_USAGE = f"""usage: mmcoref <program> [options]

Fine-tune and test causal language models on multimodal dialogue coreference.

programs:
{"".join(f"  {name:<10}{text}" + chr(10) for name, text in (_TRAINER_PROGRAMS | _OTHER_PROGRAMS).items())}\

`mmcoref <program> --help` lists the options of one. `mmcoref --version` prints the version.
Exit codes: 0; 1 if `audit` finds what training refuses, `plan` what does not fit, or a process of the run has died; 2 for a
mistake that is reported in one message, or an output that cannot be written; 128 and its number for a signal; 141 if nobody
reads the output.
"""


def command() -> NoReturn:
    """Run the `mmcoref` command as a process of its own."""
    protect_outputs()
    try:
        code = main()
    except Exception:
        traceback.print_exc()  # a defect of ours; an ordinary end of the process might wait for others
        code = 1
    leave(end_outputs(code))


def main(args: Sequence[str] | None = None) -> int:
    """Run one program and return its exit code.

    0; 1 if `audit` finds what training would refuse, `plan` what would not fit, or another process of the run has
    died; 2 for a user's mistake, reported in one message, or an output that cannot be written; 128 and its number for a
    signal (130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138 Slurm's notice); 141 if the output's reader is gone.

    Args:
        args: the command line after the program's name; by default the process's own.
    """
    argv = list(sys.argv[1:] if args is None else args)
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    if argv[0] == "--version":
        print(f"mmcoref {__version__}")
        return 0
    first = launchers.is_first()
    _configure_logging(first=first)
    notice = argv[0] in _TRAINER_PROGRAMS and slurm.in_job()
    with SIGNALS.taken(first=first, notice=notice, to_the_end=args is None):
        SIGNALS.at_end = [PEERS.kill]
        PEERS.watch_leader()
        code = None
        try:
            code = _reported(argv)
        finally:
            # The others end by themselves if all is well or all have stopped; after a failure they may wait for ever.
            failed = PEERS.close(_OTHERS_SECONDS if code == 0 or (code or 0) > 128 else 0)
        if code == 0 and failed is not None:
            print(f"mmcoref: error: {printable(failed[0])}.", file=sys.stderr)
            return failed[1]
        if code == 0 and SIGNALS.received not in (0, NOTICE):
            log.info("%s came when all was done and written", signal.Signals(SIGNALS.received).name)
            return 128 + SIGNALS.received
        if code == 128 + NOTICE and argv[0] == "fit" and first and slurm.wanted:
            slurm.requeue()
        return code


def _reported(argv: Sequence[str]) -> int:
    """Run a program, report its end in one message, and return the exit code."""
    try:
        return _run(argv)
    except UserError as error:
        PEERS.let_leader_speak()
        # Before its processes have met, a run fails on all of a machine's processes alike.
        if PEERS.launched or launchers.is_first_here() or ending.was_one_of_several():
            print(f"mmcoref: error: {error}", file=sys.stderr)
        return USER_ERROR_EXIT
    except BrokenPipeError:  # `mmcoref audit FILE | head`: who reads has seen enough
        return broken_pipe()
    except Stopped as stopped:
        log.info("%s: %s", signal.Signals(stopped.exit_code - 128).name, stopped)
        return stopped.exit_code
    except Exception as error:
        explained = PEERS.explained(error)
        if explained is None:
            PEERS.let_leader_speak()
            raise
        print(f"mmcoref: error: {printable(explained)}", file=sys.stderr)
        return 1


def _run(argv: Sequence[str]) -> int:
    if argv[0] == "sample":
        _sample(argv[1:])
    elif argv[0] == "audit":
        from mmcoref.tools import audit

        return audit.main(argv[1:])
    elif argv[0] == "compare":
        from mmcoref.tools import compare

        return compare.main(argv[1:])
    elif argv[0] == "plan":
        return _plan(argv[1:])
    elif argv[0].startswith("-"):
        raise UserError(f"{argv[0]}: options come after the program, such as in `mmcoref fit {argv[0]} …`; got it before one.")
    elif argv[0] in _TRAINER_PROGRAMS:
        from mmcoref.lightning_cli import run

        run(argv)
    else:
        raise UserError(f"{argv[0]!r}: no such program; there are {', '.join(_TRAINER_PROGRAMS | _OTHER_PROGRAMS)}.")
    return 0


def _sample(argv: Sequence[str]) -> None:
    from mmcoref.tools.arguments import Parser

    parser = Parser("sample", "Write generated dialogues in the published form.")
    parser.add_argument("--n", type=int, default=1726, help="records (default: %(default)s, as many as were published)")
    parser.add_argument("--seed", type=int, default=0, help="of the generator (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    options = parser.parse_args(argv)
    most = int(RANGES["data.sample_train"][1])
    if not 2 <= options.n <= most:
        raise UserError(f"--n: expected at least 2 records and at most {most:,}, got {options.n}.")
    if options.out.exists():
        raise UserError(f"{options.out}: exists already; name another file, or remove it.")
    from mmcoref.atomic import write_text
    from mmcoref.data.file import dump_records
    from mmcoref.data.sample import sample_records

    write_text(options.out, dump_records(sample_records(options.n, seed=options.seed)), option="--out")
    print(f"{options.n} records written to {printable(options.out)}")


def _plan(argv: Sequence[str]) -> int:
    from mmcoref.tools.arguments import Parser

    parser = Parser("plan", "Say what a fit would need, before anything is loaded. All options of `mmcoref fit` are taken, too.")
    parser.add_argument("--gpu_memory", help="of each GPU, such as 80GB (default: of the smallest one here, or 80GB where there is none)")
    options, others = parser.parse_known_args(argv)
    from mmcoref.lightning_cli import fit_settings
    from mmcoref.tools import plan

    return plan.run(fit_settings(others), gpu_memory=options.gpu_memory)


def _configure_logging(*, first: bool) -> None:
    """Print our messages on standard error, from the first process only; of the others only errors."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logger = logging.getLogger("mmcoref")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if first else logging.ERROR)
