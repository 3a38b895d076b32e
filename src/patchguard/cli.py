"""The command line: commands made from the verbs of :mod:`patchguard.api`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from patchguard import __version__, api
from patchguard.config import EvaluationConfig, Recipe, load_evaluation, load_recipe
from patchguard.errors import Interrupted, PatchGuardError
from patchguard.files import printable
from patchguard.options import REPORTER, Bases, CommandParser, Parser, reports
from patchguard.reporter import Speaking
from patchguard.stopping import signals_stop

if TYPE_CHECKING:
    from patchguard.deploy.prediction_folder import Prediction


def doctor(**settings: Any) -> None:
    """Print every check; those that fail are the error."""
    checks = api.doctor(**settings)
    for check in checks:
        value = "" if check["value"] is None else f"{check['value']:.4g}"
        limit = "" if check["limit"] is None else f"(limit {check['limit']:g})"
        print(f"{check['status']:4} {check['id']:4}{check['name']}: {value} {limit}")
        print(f"          {check['meaning']}")
    failed = [f"{check['id']} ({check['name']})" for check in checks if check["status"] == "FAIL"]
    if failed:
        raise PatchGuardError(
            f"{len(failed)} of {len(checks)} checks fail, {', '.join(failed)}: do not "
            "rely on the numbers of this detector"
        )


def predict(out: str = api.PREDICTIONS, **settings: Any) -> None:
    """Print each prediction as it is made; images that have none are the error."""
    faults = 0

    def show(found: Prediction) -> None:
        nonlocal faults
        name = " ".join(filter(None, (found.image, found.part)))
        if found.error:
            faults += 1
            print(f"{name}: {found.error}", file=sys.stderr)
        if found.score is not None:
            print(f"{found.verdict:9}  {found.score:8.3f}  p {found.p_value:.3f}  {name}")

    done = api.predict(out=out, each=show, **settings)
    print(f"written: {Path(out) / 'scores.csv'}, scores.json, overlays")
    if faults:
        raise PatchGuardError(
            f"{faults} of {len(done)} images could not be read, judged or drawn; the rest is in "
            f"{out}, and these are marked in its tables"
        )


def anomalies(**settings: Any) -> None:
    """Draw the picture and say where it is."""
    print(f"written: {printable(api.write_anomalies(**settings))}")


def synthetic(**settings: Any) -> None:
    """Write the categories and say where they are."""
    for folder in api.write_synthetic(**settings):
        print(f"written: {printable(folder)}")


@dataclass(frozen=True)
class Command:
    """A verb as a command.

    Attributes:
        verb: whose parameters it takes.
        run: what is called with them; the verb when absent.
        told_by: whose docstring says what they are; the verb's when absent.
    """

    verb: Callable[..., Any]
    run: Callable[..., None] | None = None
    told_by: Callable[..., Any] | None = None

    def parser(self, name: str) -> CommandParser:
        """Its positionals and options."""
        told_by = self.told_by or self.verb
        parser = CommandParser(f"patchguard {name}", self.verb, told_by, BASES)
        parser.epilog = RECIPE_DEFAULTS if "recipe" in parser.sections else None
        return parser


COMMANDS = {
    "fit": Command(api.fit),
    "evaluate": Command(api.evaluate),
    "doctor": Command(api.doctor, doctor, told_by=api.evaluate),
    "leaderboard": Command(api.write_leaderboard),
    "predict": Command(api.predict, predict),
    "report": Command(api.write_report),
    "anomalies": Command(api.write_anomalies, anomalies),
    "synthetic": Command(api.write_synthetic, synthetic),
    "study": Command(api.study),
    "demo": Command(api.demo),
}

BASES: Bases = {
    Recipe: lambda name: load_recipe(name or api.DEFAULT_RECIPE),
    EvaluationConfig: lambda file: load_evaluation(file) if file else EvaluationConfig(),
}

RECIPE_DEFAULTS = (
    "The defaults shown for --recipe.* apply to what a recipe leaves out. Without --recipe the "
    f"recipe is {api.DEFAULT_RECIPE}, which sets its own."
)


def _in_terms_of_files(error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.filename} is a file where a folder has to be; give another path"
    if isinstance(error, IsADirectoryError):
        return f"{error.filename} is a folder where a file has to be; give another path"
    if error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if error.strerror:
        return f"standard output or a temporary file: {error.strerror}"
    return str(error)


CLOSED_PIPE = 141
"""The status of a command whose reader has left, as ``head`` does: that of SIGPIPE in a shell."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status.

    It is 0, 1 on bad input, 130 when interrupted, 141 when nobody reads the output any more.
    """
    # Spinning OpenMP threads slow a shared machine several times over; read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Where a command was started without them; else the first file it opens would get their number.
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _status(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:
        _let_go(sys.stdout)
        return CLOSED_PIPE
    except OSError as error:  # a full disk behind the output
        _let_go(sys.stdout)
        return _fail(f"standard output: {error.strerror or error}")
    return status


def _status(argv: list[str]) -> int:
    try:
        with signals_stop():
            return _run(argv)
    except PatchGuardError as error:
        return _fail(str(error), 130 if isinstance(error, Interrupted) else 1)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(_in_terms_of_files(error))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(message: str, status: int = 1) -> int:
    print(f"patchguard: {printable(message)}", file=sys.stderr)
    return status


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _let_go(stream: TextIO) -> None:
    """Send what is left in a stream nowhere: Python would write it out at its end and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _run(argv: list[str]) -> int:
    name = _overview().parse_args(argv[:1] or ["--help"]).command
    command = COMMANDS[name]
    settings = command.parser(name).settings(argv[1:])
    if reports(command.verb):
        settings[REPORTER] = Speaking()
    (command.run or command.verb)(**settings)
    return 0


def _overview() -> Parser:
    parser = Parser(
        prog="patchguard",
        usage="patchguard COMMAND ...",
        description="Robust visual anomaly detection.",
        epilog="More: patchguard COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=(command.verb.__doc__ or "").splitlines()[0])
    return parser
