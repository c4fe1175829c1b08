"""The command line: parses arguments, runs one command, turns a user's mistake into one line and exit code 2.

Each command is a module of engine/commands with `add_arguments(parser)` and `run(args) -> exit code`. Nothing heavy is
imported before a command runs.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import sys
import traceback
from types import ModuleType

from engine.errors import StorageError, UserError, disk_is_full, one_line
from engine.redact import redact

NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)  # what no file system takes for a path, wherever it was looked at
COMMANDS = {
    "demo": "the embedded default from nothing: models, methods, RULE, leak@k table and picture (2 cores, no network)",
    "run": "one experiment file from end to end",
    "evaluate": "leak@k and utility of a model that exists already",
    "init": "write a commented experiment file and its search space into the current folder",
    "tune": "search a method's hyperparameters for little leakage at kept utility",
    "check": "look over a forget set, probes or generations before anything is paid",
    "import": "evaluation logs of others as runs, their figures computed again from their items",
    "score": "score generations that someone else made",
    "leak": "the leak@k curve with intervals, from scores",
    "compare": "runs side by side: table sorted by excess leak@k, picture, CSV, LaTeX",
    "report": "write a run's self-contained HTML report",
    "export": "write a run as tidy CSV, as OpenUnlearning's files or in the form of Every Eval Ever",
    "audit": "a run as a claim that others can check: audit.json and one printable page",
    "verify": "check an audit against the store, every number and digest",
    "sync": "record in MLflow what could not be recorded when it ended",
    "ui": "open MLflow's UI on the store in use",
    "methods": "list the unlearning methods with their hyperparameters",
    "attacks": "list the attacks on finished models with their options",
    "benchmarks": "list the benchmarks with their options",
    "doctor": "check this machine or cluster: what will work, and whether an experiment fits",
}
EPILOG = """\
start here:
  leakatk demo                                  see the whole of it in a few minutes
  leakatk init                                  write an experiment file to change, and its search space
  leakatk run FILE.yaml --set train.lr=2e-5     change one key without editing the file

exit codes: 0 done, 1 failed, 2 your mistake (one line on stderr says what, where, what to do).
Finished work is kept in the store (./leakatk-store, --store or LEAKATK_STORE): killed, run the same command again.
"""


QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def switch_reports_off() -> None:
    """Libraries report nothing on their use unless the user has said otherwise: nothing leaves the machine unasked."""
    os.environ.update(QUIET | os.environ)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors, with the nearest valid command."""

    def error(self, message: str) -> None:  # type: ignore[override]
        if "invalid choice" in message and self.prog == "leakatk":
            given = message.split("'")[1]
            near = difflib.get_close_matches(given, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(COMMANDS)}"
            message = f"unknown command {given!r}, {hint}"
        raise UserError(f"{message} (see `{self.prog} --help`)")


def build_parser(command: str | None) -> Parser:
    """The parser; only the module of `command` is imported, all of them where it is None."""
    parser = Parser(
        prog="leakatk",
        description="Experiments on LLM unlearning under probabilistic decoding: unlearn, sample, leak@k, report.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, summary in COMMANDS.items():
        child = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == command:
            _module(name).add_arguments(child)
    return parser


def _module(command: str) -> ModuleType:
    """The module of a command; `import` is no name that Python gives to one."""
    return importlib.import_module(f"engine.commands.{'import_log' if command == 'import' else command}")


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    switch_reports_off()
    command = next((word for word in argv if not word.startswith("-")), None)
    try:
        args = build_parser(command).parse_args(argv)
        return int(_module(args.command).run(args))
    except UserError as error:
        print(f"leakatk: {redact(one_line(str(error)))}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"leakatk: {redact(one_line(str(error)))}; finished work is kept, run it again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("leakatk: interrupted; finished work is kept, the same command goes on from it", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, `leakatk ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_PATH:
            said = f"{str(error.filename)[:60]!r}: {os.strerror(error.errno).lower()}; give another path"
            print(f"leakatk: {redact(one_line(said))}", file=sys.stderr)
            return 2
        if not disk_is_full(error):
            print(redact(traceback.format_exc()), file=sys.stderr)
            return 1
        print(
            "leakatk: the disk is full; free some of it or take another by --store; "
            "finished work is kept, the same command goes on from it",
            file=sys.stderr,
        )
        return 1
