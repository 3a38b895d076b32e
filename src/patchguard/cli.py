"""The command line: one thin function per command; the work is in :mod:`patchguard.api`."""

from __future__ import annotations

import inspect
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TextIO

from jsonargparse import ArgumentParser

from patchguard import __version__, api
from patchguard.config import EvaluationConfig, Recipe, in_our_words, instantiate, recipe_path
from patchguard.errors import Interrupted, PatchGuardError
from patchguard.files import printable
from patchguard.reporter import Speaking
from patchguard.stopping import signals_stop

if TYPE_CHECKING:
    from patchguard.deploy.outputs import Prediction

FLAGS = ("--strict", "--resume", "--maps", "--overwrite", "--trust", "--twin")
"""Options that are switched on by their name alone."""


def fit(
    data: str,
    recipe: Recipe,
    evaluation: EvaluationConfig,
    out: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    seed: int = 0,
    false_alarm_rate: float = 0.05,
    twin: bool = True,
    strict: bool = False,
    full_scale: float | Literal["auto"] | None = None,
    groups: str | None = None,
    resume: bool = False,
    device: str = "auto",
) -> None:
    """Train, calibrate, attack and report on a folder of normal images.

    Args:
        data: an MVTec-style tree or a plain folder of normal images.
        recipe: fast (default), strong, paper, clean, pretrain or a YAML file.
        evaluation: a YAML file with the settings below.
        out: run folder to create (default: runs/<name of data>).
        steps: length in optimiser steps, in place of the recipe's.
        epochs: length in passes over the normals, in place of the recipe's.
        minutes: length in minutes of training, in place of the recipe's.
        seed: of the split, the weights and every random draw.
        false_alarm_rate: share of normal images that may be flagged, guaranteed by calibration.
        twin: also train the undefended twin that the report compares with.
        strict: fail at the first file that cannot be read, instead of leaving it out.
        full_scale: the value that counts as white in images of more than 8 bits, or auto: the least
            2^n - 1 that holds all training images (default: the largest of their format).
        groups: images that belong together (one part, one patient) are not split into trained on
            and held out: a CSV table (file, group), or a regular expression on the path.
        resume: continue the interrupted run in OUT with the settings it was started with; where no
            training got so far, start one.
        device: that computes: cpu, cuda, cuda:1, mps, or auto: the GPU if CUDA has one.
    """
    api.fit(
        data,
        out=out,
        recipe=recipe,
        steps=steps,
        epochs=epochs,
        minutes=minutes,
        seed=seed,
        false_alarm_rate=false_alarm_rate,
        twin=twin,
        strict=strict,
        full_scale=full_scale,
        groups=groups,
        resume=resume,
        evaluation=evaluation,
        device=device,
        reporter=Speaking(),
    )


def evaluate(
    detector: str,
    data: str,
    evaluation: EvaluationConfig,
    out: str | None = None,
    seed: int = 0,
    strict: bool = False,
    trust: bool = False,
    device: str = "auto",
) -> None:
    """Attack any detector on labelled test images; go on where a stopped evaluation was.

    Args:
        detector: a run folder, an anomalib checkpoint (.ckpt) or file.py:function.
        data: MVTec-style tree with a test folder of normal and anomalous images.
        evaluation: a YAML file with the settings below.
        out: folder for the results, unless the detector is a run folder
            (default: evaluations/<its name>).
        seed: of the attacks' random draws.
        strict: fail at the first file that cannot be read, instead of leaving it out.
        trust: unpickle a checkpoint, which runs whatever code is in it.
        device: that computes: cpu, cuda, cuda:1, mps, or auto: the GPU if CUDA has one.
    """
    api.evaluate(
        detector,
        data,
        out=out,
        evaluation=evaluation,
        seed=seed,
        strict=strict,
        trust=trust,
        device=device,
        reporter=Speaking(),
    )


def doctor(
    detector: str,
    data: str,
    evaluation: EvaluationConfig,
    out: str | None = None,
    seed: int = 0,
    strict: bool = False,
    trust: bool = False,
    device: str = "auto",
) -> None:
    """Check whether the evaluation of a detector can be believed; status 1 if it cannot.

    Args:
        detector: a run folder, an anomalib checkpoint (.ckpt) or file.py:function.
        data: MVTec-style tree with a test folder of normal and anomalous images.
        evaluation: a YAML file with the settings below.
        out: folder for the results, unless the detector is a run folder
            (default: evaluations/<its name>).
        seed: of the attacks' random draws.
        strict: fail at the first file that cannot be read, instead of leaving it out.
        trust: unpickle a checkpoint, which runs whatever code is in it.
        device: that computes: cpu, cuda, cuda:1, mps, or auto: the GPU if CUDA has one.
    """
    checks = api.doctor(
        detector,
        data,
        out=out,
        evaluation=evaluation,
        seed=seed,
        strict=strict,
        trust=trust,
        device=device,
        reporter=Speaking(),
    )
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


def leaderboard(cards: str, out: str = "leaderboard.html") -> None:
    """One page that compares all robustness cards below a folder.

    Args:
        cards: a folder that holds card.json files at any depth: of runs and of evaluations.
        out: HTML file to write.
    """
    api.write_leaderboard(cards, out=out, reporter=Speaking())


def predict(
    run: str,
    images: list[str],
    out: str = "predictions",
    maps: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> None:
    """Scores, verdicts and overlays of new images, at the resolution they came in.

    Args:
        run: run folder.
        images: images and folders of images.
        out: folder for scores.csv, scores.json and overlays; a stopped prediction goes on in it.
        maps: also write the raw anomaly maps (float32 .npy).
        overwrite: replace finished predictions in OUT.
        device: that computes: cpu, cuda, cuda:1, mps, or auto: the GPU if CUDA has one.
    """
    faults = 0

    def show(found: Prediction) -> None:
        nonlocal faults
        name = " ".join(filter(None, (found.image, found.part)))
        if found.error:
            faults += 1
            print(f"{name}: {found.error}", file=sys.stderr)
        if found.score is not None:
            print(f"{found.verdict:9}  {found.score:8.3f}  p {found.p_value:.3f}  {name}")

    done = api.predict(
        run,
        images,
        out=out,
        maps=maps,
        overwrite=overwrite,
        device=device,
        reporter=Speaking(),
        each=show,
    )
    print(f"written: {Path(out) / 'scores.csv'}, scores.json, overlays")
    if faults:
        raise PatchGuardError(
            f"{faults} of {len(done)} images could not be read, judged or drawn; the rest is in "
            f"{out}, and these are marked in its tables"
        )


def report(run: str) -> None:
    """Render report.html of a run folder again.

    Args:
        run: run folder.
    """
    api.write_report(run, reporter=Speaking())


def anomalies(data: str, recipe: Recipe, out: str = "anomalies.png", seed: int = 0) -> None:
    """A picture of training images, their foregrounds and pseudo-anomalies made from them.

    Args:
        data: an MVTec-style tree or a plain folder of normal images.
        recipe: fast (default), strong, paper, clean, pretrain or a YAML file.
        out: PNG file to write.
        seed: of the pseudo-anomalies.
    """
    path = api.write_anomalies(data, out=out, recipe=recipe, seed=seed, reporter=Speaking())
    print(f"written: {printable(path)}")


def synthetic(out: str, seed: int = 0) -> None:
    """Write the built-in benchmark: three rendered categories as MVTec-style trees.

    Args:
        out: folder to create.
        seed: of everything in the images.
    """
    for folder in api.write_synthetic(out, seed=seed):
        print(f"written: {printable(folder)}")


def study(
    data: list[str],
    evaluation: EvaluationConfig,
    recipes: str | None = None,
    seeds: str = "0",
    out: str = "studies/results",
    page: str | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    twin: bool = False,
    device: str = "auto",
) -> None:
    """Fit recipes on data sets with several seeds; one page of results. Goes on after a stop.

    Args:
        data: MVTec-style trees or plain folders of normal images.
        evaluation: a YAML file with the settings below.
        recipes: names or YAML files, with commas between them; differences are to the first.
        seeds: numbers with commas between them.
        out: folder for the runs; finished ones in it are not made again.
        page: Markdown file to write (default: OUT/results.md).
        steps: length in optimiser steps, in place of the recipes'.
        minutes: length in minutes of training, in place of the recipes'.
        twin: also train the undefended twin of every run.
        device: that computes: cpu, cuda, cuda:1, mps, or auto: the GPU if CUDA has one.
    """
    api.study(
        data,
        recipes=None if recipes is None else _listed(recipes),
        seeds=[_seed(word) for word in _listed(seeds)],
        out=out,
        page=page,
        steps=steps,
        minutes=minutes,
        twin=twin,
        evaluation=evaluation,
        device=device,
        reporter=Speaking(),
    )


def demo(out: str = "demo", device: str = "auto") -> None:
    """The whole job on a rendered data set: minutes later, a report to look at.

    Args:
        out: folder for the images and the run; an interrupted demo is continued.
        device: that computes: cpu, cuda, cuda:1, mps, or auto: the GPU if CUDA has one.
    """
    api.demo(out, device=device, reporter=Speaking())


COMMANDS: dict[str, Callable[..., None]] = {
    "fit": fit,
    "evaluate": evaluate,
    "doctor": doctor,
    "leaderboard": leaderboard,
    "predict": predict,
    "report": report,
    "anomalies": anomalies,
    "synthetic": synthetic,
    "study": study,
    "demo": demo,
}


TRAINS = ("fit", "anomalies")
RECIPE_DEFAULTS = (
    "The defaults shown for --recipe.* apply to what a recipe file leaves out. Without --recipe "
    f"the recipe is {api.DEFAULT_RECIPE}, which sets its own."
)


class _Parser(ArgumentParser):
    """A parser that takes no abbreviations and says what is wrong in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        told = _in_terms_of_options(" ".join(str(message).split()))
        raise PatchGuardError(f"{told} (see {self.prog.replace(' [options]', '')} --help)")


def _in_terms_of_options(message: str) -> str:
    """What jsonargparse says about its keys, said of options."""
    # Its versions word this differently, and none speaks of the command's DATA.
    missing = re.search(r"(?:Option '|Key \"|required: )\w+\.(\w+)", message)
    if missing and "required" in message:
        return f"{missing[1].upper()} is missing"
    loading = re.fullmatch(r"""Parser key "(\w+)": Unable to load config '(.+?)' - (.*)""", message)
    if loading:
        section, file, reason = loading.groups()
        if "Unable to load config" in reason:
            return f"--{section} {file}: neither a file of settings nor settings"
        return f"{file}: {in_our_words(reason).removeprefix(f'{section}.')}"
    told = in_our_words(message)
    return told if told == message else f"--{told}"


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


def _let_go(stream: TextIO) -> None:
    """Send what is left in a stream nowhere: Python would write it out at its end and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _run(argv: list[str]) -> int:
    parser = _Parser(
        prog="patchguard", description="Robust visual anomaly detection.", version=__version__
    )
    commands = parser.add_subcommands(dest="command")
    for name, function in COMMANDS.items():
        command = _Parser(
            description=(function.__doc__ or "").splitlines()[0],
            usage=_usage(name, function),
            epilog=RECIPE_DEFAULTS if name in TRAINS else None,
        )
        several = _several(function)
        command.add_function_arguments(function, as_positional=True, skip=set(several))
        for parameter in several:
            command.add_argument(parameter, nargs="+", help="one or several")
        commands.add_subcommand(name, command, help=command.description)
    settings = instantiate(parser, parser.parse_args(_expanded(argv or ["--help"])))
    name = settings["command"]
    COMMANDS[name](**settings[name])
    return 0


def _usage(name: str, function: Callable[..., None]) -> str:
    """One line; argparse would list a hundred settings."""
    parameters = inspect.signature(function).parameters.values()
    required = [
        parameter.name.upper()
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.annotation == "str"
    ]
    several = [f"{word.upper()} [{word.upper()} ...]" for word in _several(function)]
    return " ".join(["patchguard", name, *required, *several, "[options]"])


def _several(function: Callable[..., None]) -> list[str]:
    """Parameters that take as many words as there are."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.annotation == "list[str]"]


def _listed(words: str) -> list[str]:
    return [word.strip() for word in words.strip("[]").split(",") if word.strip()]


def _seed(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise PatchGuardError(f"--seeds: {word!r} is no number; write them as 0,1,2") from None


def _expanded(argv: list[str]) -> list[str]:
    """Bare flags get a value, and names of recipes become files."""
    words = [
        f"{word}=true" if word in FLAGS and after.lower() not in ("true", "false") else word
        for word, after in zip(argv, [*argv[1:], ""], strict=True)
    ]
    for place, word in enumerate(words):
        if word.startswith("--recipe="):
            words[place] = f"--recipe={recipe_path(word.removeprefix('--recipe='))}"
        elif word == "--recipe" and place + 1 < len(words):
            words[place + 1] = str(recipe_path(words[place + 1]))
    if _needs_recipe(words):
        words[1:1] = ["--recipe", str(recipe_path(api.DEFAULT_RECIPE))]
    return words


def _needs_recipe(words: list[str]) -> bool:
    """A command that trains, called without a recipe and not only for help."""
    given = any(word == "--recipe" or word.startswith("--recipe=") for word in words)
    wants_help = not {"-h", "--help"}.isdisjoint(words)
    return words[0] in TRAINS and not given and not wants_help
