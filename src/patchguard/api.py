"""The verbs, one for each command; the command line calls these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from patchguard.config import EvaluationConfig, FitConfig, Recipe, load_recipe
from patchguard.errors import PatchGuardError
from patchguard.files import resolved, sole_writer

DEFAULT_RECIPE = "fast"
PREDICTIONS = "predictions"
DEMO_CATEGORY = "fabric"
DEMO_STEPS = 1000
DEMO_MINUTES = 5
"""Of attacks, on each of the two detectors; the self-checks come on top."""

if TYPE_CHECKING:
    from patchguard.deploy.prediction_folder import Prediction
    from patchguard.evaluation.test_set import TestSet
    from patchguard.models.patchguard import PatchGuard
    from patchguard.pipelines.study import Planned
    from patchguard.report.study import Failure
    from patchguard.reporter import Reporter
    from patchguard.runtime import Runtime
    from patchguard.training.prepare import PreparedImages


def fit(
    data: str | Path,
    *,
    out: str | Path | None = None,
    recipe: Recipe | str | None = None,
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
    evaluation: EvaluationConfig | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Path:
    """From a folder of normal images to a calibrated, attacked detector and its report.

    Args:
        data: an MVTec-style tree or a plain folder of normal images.
        out: run folder to create, of its own and apart from the data; ``runs/<name of data>`` by
            default.
        recipe: a recipe, its name (``fast``, ``strong``, ``paper``, ``clean``, ``pretrain``) or
            its YAML file; ``fast`` when absent.
        steps: length in optimiser steps, in place of the recipe's.
        epochs: length in passes over the normals, in place of the recipe's.
        minutes: length in minutes of training, in place of the recipe's.
        seed: of the split, the weights and every random draw.
        false_alarm_rate: share of normal images that may be flagged, guaranteed by calibration.
        twin: also train the undefended twin that the report compares with.
        strict: fail at the first file that cannot be read, instead of leaving it out.
        full_scale: the value that counts as white in images of more than 8 bits, stored with the
            detector; ``auto`` for the least 2^n - 1 that holds all values of the training images;
            the largest that their format holds when absent.
        groups: which normal images belong together, so that no part or patient is both trained on
            and held out: a CSV table with the columns file and group, or a regular expression
            whose first parenthesis in the path is the group.
        resume: continue the interrupted run in ``out`` with the settings it was started with; where
            no training got so far, start one.
        evaluation: its attacks; for the command line a YAML file of the settings below.
        device: that computes: cpu, cuda, cuda:1, mps, or auto: the GPU if CUDA has one.
        reporter: where messages and progress go; by default messages go to the log ``patchguard``.

    Returns:
        The run folder: :func:`load` reads it, ``report.html`` in it is for people.

    Raises:
        PatchGuardError: bad input; its one line says what to do.
        patchguard.errors.Interrupted: stopped by the user; the state is saved.
    """
    from patchguard.pipelines import fit as fitting
    from patchguard.results import ownership
    from patchguard.runtime import Runtime

    runtime = Runtime.on(device, reporter)
    folder = Path(out) if out else Path("runs") / resolved(data).name
    settings = FitConfig(
        data=str(data),
        seed=seed,
        false_alarm_rate=false_alarm_rate,
        twin=twin,
        strict=strict,
        full_scale=full_scale,
        groups=groups,
        recipe=_with_length(_recipe(recipe), steps, epochs, minutes),
        evaluation=evaluation or EvaluationConfig(),
    )
    own_length = any(length is not None for length in (steps, epochs, minutes))
    ownership.check_apart(folder, [data])
    ownership.check_own(folder, ownership.RUN)
    with ExitStack() as lock:
        there = folder.exists()
        if there:
            lock.enter_context(ownership.writing(folder))
        settings = _settings_of(folder, settings, resume, own_length, runtime.reporter)
        fitting.check(settings)
        material = fitting.prepared(Path(data), settings, runtime.reporter.tell)
        if not there:  # only now, so that a mistake leaves no folder behind
            lock.enter_context(ownership.writing(folder))
            _check_unbegun(folder)
        _fit(folder, settings, material, str(data), runtime)
    return folder


def _fit(
    folder: Path, settings: FitConfig, material: PreparedImages, data: str, runtime: Runtime
) -> None:
    """What :func:`fit` does once it has the folder to itself."""
    from patchguard.pipelines import evaluate as evaluating
    from patchguard.pipelines import fit as fitting
    from patchguard.results import ownership

    tell = runtime.reporter.tell
    tell(material.summary)
    fitting.tell_of_shortfall(material, settings.false_alarm_rate, tell)
    fitting.check_same_images(folder, material)
    fitting.check_same_changes(folder, material)
    ownership.claim(folder, ownership.RUN)
    picture = folder / "anomalies.png"
    fitting.write_training_gallery(material, settings.recipe.model, picture, settings.seed)
    runs = {folder: settings}
    if settings.twin and fitting.is_defended(settings):
        runs[folder / evaluating.TWIN] = fitting.undefended(settings)
    for run, of_run in runs.items():
        fitting.fit_detector(material, of_run, run, runtime=runtime)
    test, name = evaluating.test_set(material, settings, tell)
    # The twin first: its worst case is the control of the checks.
    for run in reversed(runs):
        evaluating.renew_run(
            run,
            test,
            name,
            settings.evaluation,
            data=data,
            seed=settings.seed,
            twin=run != folder,
            runtime=runtime,
        )
        tell(evaluating.outcome(run))
    _write_report(folder, tell)


def load(run: str | Path) -> PatchGuard:
    """The detector of a finished run folder, in eval mode on the CPU.

    Raises:
        PatchGuardError: a file is missing, truncated or altered.
    """
    from patchguard.models.checkpoint import load_detector

    return load_detector(Path(run))


def evaluate(
    detector: str | Path,
    data: str | Path,
    *,
    out: str | Path | None = None,
    evaluation: EvaluationConfig | None = None,
    seed: int = 0,
    strict: bool = False,
    trust: bool = False,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Path:
    """Attack any detector on labelled test images and say what the worst case is.

    Args:
        detector: a run folder, whose metrics and report are renewed, the former ones kept in
            ``former/<date>`` inside it; an anomalib checkpoint (``.ckpt``); or
            ``file.py:function``, where the function returns a detector.
        data: MVTec-style tree with a ``test`` folder of normal and anomalous images.
        out: folder for the metrics and the card of a detector that is not a run folder, of its own
            and apart from the data; ``evaluations/<its name>`` by default.
        evaluation: the attacks; for the command line a YAML file of the settings below.
        seed: of all random draws.
        strict: fail at the first file that cannot be read, instead of leaving it out.
        trust: unpickle a checkpoint, which runs whatever code is in it.
        device: that computes: cpu, cuda, cuda:1, mps, or auto: the GPU if CUDA has one.
        reporter: where messages and progress go; by default messages go to the log ``patchguard``.

    Returns:
        The file of metrics. Finished work is kept beside it: called again after a stop, the
        evaluation goes on from there.

    Raises:
        PatchGuardError: bad input; its one line says what to do.
        patchguard.errors.Interrupted: stopped by the user.
    """
    from patchguard.data.folder import require_labelled, scan_test
    from patchguard.evaluation.protocol import suite_of
    from patchguard.integrations.load import detector_named
    from patchguard.pipelines import evaluate as evaluating
    from patchguard.results import ownership
    from patchguard.results.run_folder import METRICS, is_run
    from patchguard.runtime import Runtime
    from patchguard.training.prepare import tell_of

    config = evaluation or EvaluationConfig()
    if seed < 0:
        raise PatchGuardError(f"seed is {seed}; it must be 0 or more")
    suite_of(config)
    runtime = Runtime.on(device, reporter)
    tell = runtime.reporter.tell
    found = detector_named(str(detector), trust=trust)
    tree = scan_test(Path(data), strict=strict, full_scale=found.full_scale)
    tell_of(tree, tell)
    require_labelled(tree)
    test = evaluating.labelled(tree, found.shape, tell)
    folder = Path(detector)
    if is_run(folder):
        if out is not None:
            raise PatchGuardError(f"--out {out}: the results of a run folder go into {folder}")
        with ownership.writing(folder):
            _evaluate_run(folder, test, config, data=str(data), seed=seed, runtime=runtime)
        return folder / METRICS
    folder = Path(out) if out else Path("evaluations") / found.name
    ownership.check_apart(folder, [data])
    ownership.check_own(folder, ownership.EVALUATION)
    with ownership.writing(folder):
        ownership.claim(folder, ownership.EVALUATION)
        evaluating.evaluate_other(
            folder, found, test, config, data=str(data), seed=seed, runtime=runtime
        )
        tell(evaluating.outcome(folder))
        write_leaderboard(folder, out=folder / evaluating.LEADERBOARD, reporter=runtime.reporter)
    return folder / METRICS


def _evaluate_run(
    folder: Path,
    test: TestSet,
    config: EvaluationConfig,
    *,
    data: str,
    seed: int,
    runtime: Runtime,
) -> None:
    """A run and, before it, its twin."""
    from patchguard.pipelines import evaluate as evaluating
    from patchguard.results.run_folder import MANIFEST
    from patchguard.results.schema import LABELLED

    tell = runtime.reporter.tell
    twin = folder / evaluating.TWIN
    if twin.exists() and not (twin / MANIFEST).exists():
        tell(f"{twin} is unfinished and left out")
    for run in (twin, folder):
        if (run / MANIFEST).exists():
            evaluating.evaluate_run(
                run,
                test,
                LABELLED,
                config,
                data=data,
                seed=seed,
                twin=run == twin,
                runtime=runtime,
            )
            tell(evaluating.outcome(run))
    _write_report(folder, tell)


def doctor(
    detector: str | Path,
    data: str | Path,
    *,
    out: str | Path | None = None,
    evaluation: EvaluationConfig | None = None,
    seed: int = 0,
    strict: bool = False,
    trust: bool = False,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Check whether the evaluation of a detector can be believed.

    It is evaluated as by :func:`evaluate`, with every self-check, also the slow ones. As a command
    it ends with status 1 where a check fails.

    Returns:
        The checks as ``metrics.json`` holds them.
    """
    from patchguard.results.files import read_as
    from patchguard.results.schema import Result

    config = replace(evaluation or EvaluationConfig(), all_checks=True)
    path = evaluate(
        detector,
        data,
        out=out,
        evaluation=config,
        seed=seed,
        strict=strict,
        trust=trust,
        device=device,
        reporter=reporter,
    )
    return [check.model_dump() for check in read_as(Result, path).checks]


def write_leaderboard(
    cards: str | Path,
    *,
    out: str | Path = "leaderboard.html",
    reporter: Reporter | None = None,
) -> Path:
    """One page that compares all robustness cards below a folder.

    Args:
        cards: a folder that holds ``card.json`` files at any depth; links are followed, former ones
            do not count.
        out: HTML file to write.
        reporter: where messages and progress go; by default messages go to the log ``patchguard``.

    Raises:
        PatchGuardError: no card, a damaged one, or a file of somebody else at ``out``.
    """
    from patchguard.data.listing import list_folder
    from patchguard.pipelines.evaluate import CARD
    from patchguard.report.leaderboard import MARKS, render_leaderboard
    from patchguard.results.ownership import FORMER, check_file

    below = [path for path in list_folder(Path(cards)).others if path.name == CARD]
    # One that a link leads to as well is one card.
    found = {path.resolve(): path for path in below if FORMER not in path.relative_to(cards).parts}
    if not found:
        raise PatchGuardError(f"{cards}: no {CARD} in it; evaluate a detector first")
    check_file(Path(out), "--out", MARKS)
    path = render_leaderboard(list(found.values()), Path(out))
    _reporter(reporter).tell(f"leaderboard: {path}")
    return path


def predict(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    out: str | Path = PREDICTIONS,
    maps: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    reporter: Reporter | None = None,
    each: Callable[[Prediction], None] = lambda _: None,
) -> list[Prediction]:
    """Scores, verdicts and overlays of new images, at the resolution they came in.

    Called again after a stop, it goes on from what is done.

    Args:
        run: run folder.
        images: images and folders of images, one or several.
        out: folder for ``scores.csv``, ``scores.json`` and ``overlays``.
        maps: also write the raw anomaly maps, float32 ``.npy``.
        overwrite: remove the finished predictions in ``out`` first; nothing else in it is touched.
        device: that computes: cpu, cuda, cuda:1, mps, or auto: the GPU if CUDA has one.
        reporter: where messages and progress go; by default messages go to the log ``patchguard``.
        each: called with each prediction as it is made.

    Returns:
        One prediction for each image, those with an ``error`` among them.

    Raises:
        PatchGuardError: no images, a run folder that is unfinished or damaged, or an ``out`` that
            holds something else.
    """
    from patchguard.data.listing import others_told
    from patchguard.deploy.pipeline import load_pipeline
    from patchguard.deploy.predict import find_inputs, write_predictions
    from patchguard.deploy.prediction_folder import PredictionFolder
    from patchguard.files import absolute, counted
    from patchguard.results.run_folder import manifest_digest
    from patchguard.runtime import Runtime

    runtime = Runtime.on(device, reporter)
    tell = runtime.reporter.tell
    paths = [Path(path) for path in _several(images)]
    inputs = find_inputs(paths)
    pipeline = load_pipeline(Path(run), runtime.device)
    purpose = {
        "detector": manifest_digest(Path(run)),
        "images": [str(absolute(path)) for path in paths],
        "maps": maps,
    }
    folder = PredictionFolder(Path(out), purpose)
    with closing(folder):
        for path in folder.open(overwrite=overwrite):
            tell(f"{path} was changed since it was written and is left where it is")
        if folder.rows:
            tell(f"{counted(len(folder.rows), 'image')} done already")
        for line in others_told(inputs.listing, inputs.root):
            tell(line)
        return write_predictions(pipeline, inputs, folder, maps=maps, each=each)


def write_report(run: str | Path, *, reporter: Reporter | None = None) -> Path:
    """Render the report of a run folder again.

    Args:
        run: run folder; the report is made from the files in it.
        reporter: where messages and progress go; by default messages go to the log ``patchguard``.

    Returns:
        ``report.html`` in the folder.
    """
    from patchguard.results.ownership import writing
    from patchguard.results.run_folder import read_plain_config

    read_plain_config(Path(run))
    with writing(Path(run)):
        return _write_report(Path(run), _reporter(reporter).tell)


def _write_report(run: Path, tell: Callable[[str], None]) -> Path:
    from patchguard.report.render import render_report
    from patchguard.results.run_folder import METRICS

    path = render_report(run)
    if not (run / METRICS).exists():
        tell(f"{run} is not evaluated yet: patchguard evaluate {run} DATA")
    tell(f"report: {path}")
    return path


def write_anomalies(
    data: str | Path,
    *,
    out: str | Path = "anomalies.png",
    recipe: Recipe | str | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Path:
    """A picture of training images, their foregrounds and pseudo-anomalies made from them.

    They are the images that :func:`fit` trains on at its usual false-alarm rate, and the windows
    of them that its training sees, changed as it changes them.

    Args:
        data: an MVTec-style tree or a plain folder of normal images.
        out: PNG file to write, apart from the data, where it would count as an image.
        recipe: a recipe, its name or its YAML file, as for :func:`fit`.
        seed: of the split and of the pseudo-anomalies.
        reporter: where messages and progress go; by default messages go to the log ``patchguard``.

    Raises:
        PatchGuardError: bad input, an ``out`` among the images, or a file of somebody else there;
            its one line says what to do.
    """
    from patchguard.pipelines import fit as fitting
    from patchguard.results.ownership import check_apart, check_file
    from patchguard.training.gallery import GALLERY_MARK

    check_file(Path(out), "--out", (GALLERY_MARK,))
    check_apart(Path(out), [data])
    settings = FitConfig(data=str(data), seed=seed, recipe=_recipe(recipe))
    tell = _reporter(reporter).tell
    material = fitting.prepared(Path(data), settings, tell)
    tell(material.summary)
    fitting.write_training_gallery(material, settings.recipe.model, Path(out), seed)
    return Path(out)


def write_synthetic(out: str | Path, *, seed: int = 0) -> list[Path]:
    """Write the built-in benchmark: three rendered categories as MVTec-style trees.

    Args:
        out: folder to create.
        seed: of everything in the images.

    Returns:
        The folders of the categories.
    """
    from patchguard.data.synthetic import write_benchmark

    return write_benchmark(Path(out), seed=seed)


def study(
    data: str | Path | Sequence[str | Path],
    *,
    recipes: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] = 0,
    out: str | Path = "studies/results",
    page: str | Path | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    twin: bool = False,
    evaluation: EvaluationConfig | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Path:
    """Fit every recipe on every data set with every seed, and write one page of results.

    Each run has a folder of its own, ``<out>/<data>/<recipe>/seed-<n>``. Called again after a
    stop, or with more recipes, data or seeds, only what is missing is made.

    Args:
        data: MVTec-style trees or plain folders of normal images, one or several.
        recipes: names or YAML files, one or several; differences are taken to the first. By
            default ``fast``.
        seeds: one or several.
        out: folder for the runs.
        page: Markdown file to write; ``<out>/results.md`` by default.
        steps: length in optimiser steps, in place of the recipes'.
        minutes: length in minutes of training, in place of the recipes'.
        twin: also train the undefended twin of every run.
        evaluation: the attacks; for the command line a YAML file of the settings below.
        device: that computes: cpu, cuda, cuda:1, mps, or auto: the GPU if CUDA has one.
        reporter: where messages and progress go; by default messages go to the log ``patchguard``.

    Returns:
        The page.

    Raises:
        PatchGuardError: bad input, finished runs that were made with other settings, or runs that
            failed; these are on the page, with the others.
        patchguard.errors.Interrupted: stopped by the user; the state is saved.
    """
    from patchguard.pipelines import study as studying
    from patchguard.results import ownership
    from patchguard.runtime import Runtime

    Runtime.on(device)  # an absent one is named before any run fails
    folders = studying.data_names(_several(data))
    files = studying.recipe_names(_several(DEFAULT_RECIPE if recipes is None else recipes))
    numbers = [seeds] if isinstance(seeds, int) else list(seeds)
    config = evaluation or EvaluationConfig()
    settings = {
        name: _with_length(load_recipe(file), steps, None, minutes) for name, file in files.items()
    }
    path = Path(page) if page else Path(out) / "results.md"
    studying.check_page(path)
    ownership.check_apart(Path(out), folders.values())
    runs = studying.plan(folders, settings, numbers, Path(out), twin=twin, evaluation=config)
    for run in runs:
        ownership.check_own(run.folder, ownership.RUN)
        studying.check_same_settings(run)
    studying.read_all(runs)
    written = studying.command(
        list(folders.values()),
        list(files.values()),
        numbers,
        config,
        out=str(out),
        page=str(page) if page else None,
        steps=steps,
        minutes=minutes,
        twin=twin,
    )
    with sole_writer(Path(out)):
        failures = _carry_out(runs, path, written, device, _reporter(reporter))
    if failures:
        raise PatchGuardError(
            f"{len(failures)} of {len(runs)} runs failed, first {failures[0].run}: "
            f"{failures[0].reason}"
        )
    return path


def _carry_out(
    runs: Sequence[Planned], path: Path, command: str, device: str, reporter: Reporter
) -> list[Failure]:
    """Make the runs of a study and write its page; returns those that failed."""
    from patchguard.files import write_whole
    from patchguard.pipelines import study as studying
    from patchguard.report import study as report

    def fit_planned(run: Planned) -> None:
        fit(
            run.settings.data,
            out=run.folder,
            recipe=run.settings.recipe,
            seed=run.settings.seed,
            twin=run.settings.twin,
            resume=run.folder.exists(),
            evaluation=run.settings.evaluation,
            device=device,
            reporter=reporter,
        )

    failures = studying.carry_out(runs, fit_planned, reporter.tell)
    found = studying.read_all(runs)
    if found:
        write_whole(path, report.study_page(found, failures, command))
        for line in (*report.summary(found).splitlines(), "", f"results: {path}"):
            reporter.tell(line)
    return failures


def demo(
    out: str | Path = "demo", *, device: str = "auto", reporter: Reporter | None = None
) -> Path:
    """The whole job on a rendered data set: minutes later, a report to look at.

    The data are a category of the built-in benchmark; an undefended twin is trained too.

    Args:
        out: folder for the images and the run; an interrupted demo is continued.
        device: that computes: cpu, cuda, cuda:1, mps, or auto: the GPU if CUDA has one.
        reporter: where messages and progress go; by default messages go to the log ``patchguard``.

    Returns:
        The run folder.
    """
    from patchguard.data.synthetic import write_benchmark
    from patchguard.results.run_folder import is_begun
    from patchguard.runtime import Runtime

    Runtime.on(device)  # an absent one is named before anything is rendered
    folder = Path(out)
    write_benchmark(
        folder / "data", categories=(DEMO_CATEGORY,), train=200, test_good=20, test_per_defect=5
    )
    run = folder / DEMO_CATEGORY
    return fit(
        folder / "data" / DEMO_CATEGORY,
        out=run,
        recipe="fast",
        steps=None if is_begun(run) else DEMO_STEPS,
        evaluation=EvaluationConfig(minutes=DEMO_MINUTES),
        resume=run.exists(),
        device=device,
        reporter=reporter,
    )


def _several(given: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(given)] if isinstance(given, str | Path) else [str(each) for each in given]


def _recipe(recipe: Recipe | str | None) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    return load_recipe(recipe or DEFAULT_RECIPE)


def _with_length(
    recipe: Recipe, steps: int | None, epochs: float | None, minutes: float | None
) -> Recipe:
    lengths = (steps, epochs, minutes)
    if all(length is None for length in lengths):
        return recipe
    if sum(length is not None for length in lengths) > 1:
        raise PatchGuardError("give the length as one of --steps, --epochs and --minutes")
    training = replace(recipe.training, steps=steps, epochs=epochs, minutes=minutes)
    return replace(recipe, training=training)


def _check_unbegun(folder: Path) -> None:
    """Another process may have fitted into a new folder while the images were prepared."""
    from patchguard.results.run_folder import is_begun

    if is_begun(folder):
        raise PatchGuardError(
            f"{folder}: another patchguard fit was writing here; add --resume to see what it left, "
            "or choose another --out"
        )


def _settings_of(
    folder: Path, settings: FitConfig, resume: bool, own_length: bool, reporter: Reporter
) -> FitConfig:
    """The settings of a new run, or those of the run that is resumed.

    A folder in which no training got so far that it could be resumed is used again.
    """
    from patchguard.results.run_folder import CONFIG, is_begun, read_config

    if not is_begun(folder):
        if resume:
            reporter.tell(
                f"{folder} holds nothing to resume: a new run begins, as this command says"
            )
        return settings
    if not resume:
        raise PatchGuardError(f"{folder} holds a run already; add --resume or choose another --out")
    recorded = read_config(folder)[0]
    before, now = (each.recipe.training.length for each in (recorded, settings))
    if own_length and before != now:
        raise PatchGuardError(
            f"{folder} was begun with {before}, which a resumed run keeps: give no --steps, "
            "--epochs or --minutes, or choose another --out"
        )
    reporter.tell(f"continuing {folder} with the settings in its {CONFIG}")
    return recorded


def _reporter(given: Reporter | None) -> Reporter:
    from patchguard.reporter import Silent

    return given or Silent()
