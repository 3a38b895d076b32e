"""What the published protocol says of a detector, beside the worst case of a suite.

    python benchmarks/legacy_gap.py RUN DATA [--suite quick] [--steps 1000] [--eps 8/255]

The published protocol is PGD on the combined patch loss: one attack for detection and
localization, from the clean image, last iterate. It needs ground truth. The worst case here is
that of the suite without it, so that the gap is not the published attack's own doing.
"""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import yaml

import patchguard
from patchguard.config import SUITES, EvaluationConfig
from patchguard.data.folder import scan_test
from patchguard.evaluation.protocol import DetectorFacts, evaluate_detector
from patchguard.evaluation.test_set import TestSet, labelled_images
from patchguard.results.model_file import read_model
from patchguard.results.schema import LEGACY, WORST


def evaluated(
    run: Path, test: TestSet, threats: list[dict[str, Any]], seed: int, cache: Path
) -> dict[tuple[str, str], dict[str, float]]:
    """Image and pixel AUROC by attack and eps, under a suite of these threats."""
    with NamedTemporaryFile("w", encoding="utf-8", suffix=".yaml") as file:
        yaml.safe_dump({"threats": threats}, file)
        file.flush()
        summary = evaluate_detector(
            patchguard.load(run),
            test,
            EvaluationConfig(suite=file.name),
            known=DetectorFacts(checks=False),
            seed=seed,
            cache=cache,
        ).summary
    return {
        (entry.attack, entry.eps): {
            level: getattr(entry.both, level).auroc for level in ("image", "pixel")
        }
        for entry in summary.attacked
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--eps", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tree = scan_test(arguments.data)
    if not tree.has_masks:
        parser.error(f"{arguments.data} has no ground truth, which the published attack needs")
    height, width = read_model(arguments.run).preprocessing.shape
    test = labelled_images(tree.test, (height, width), with_masks=True)
    threats = yaml.safe_load((SUITES / f"{arguments.suite}.yaml").read_text())["threats"][:1]
    threats[0]["eps"] = arguments.eps or threats[0]["eps"]
    members = [entry for entry in threats[0]["attacks"] if entry["attack"] != LEGACY]
    published = [{"attack": LEGACY, "steps": arguments.steps}]
    cache = arguments.run / "attacks"
    worst = evaluated(
        arguments.run, test, [{**threats[0], "attacks": members}], arguments.seed, cache
    )
    legacy = evaluated(
        arguments.run, test, [{**threats[0], "attacks": published}], arguments.seed, cache
    )
    print(
        f"{arguments.run.name} on {arguments.data.name}: {len(test.names)} images of "
        f"{height} x {width} px, "
        f"{threats[0]['norm']}, seed {arguments.seed}; legacy: PGD-{arguments.steps}; worst case: "
        f"{arguments.suite} without legacy; patchguard {patchguard.__version__}, "
        f"torch {version('torch')}, Python {platform.python_version()}"
    )
    for eps in threats[0]["eps"]:
        for level in ("image", "pixel"):
            kinder, found = legacy[LEGACY, eps][level], worst[WORST, eps][level]
            print(
                f"{eps:>6} {level} AUROC   legacy {kinder:.3f}   worst case {found:.3f}   "
                f"gap {kinder - found:+.3f}"
            )


if __name__ == "__main__":
    main()
