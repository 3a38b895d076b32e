"""How much of the real defects the foreground masks cover, and how much of the image they take.

    python benchmarks/foreground_coverage.py DATA [--method border] [--weights FILE]

DATA is an MVTec-style tree with ground truth. Masks are computed on the defective *test* images;
nothing is read from or written to the mask cache. The table of `screw` was in view when two
settings of ``border`` (saturation, margin) were chosen: for `screw` it is no blind measurement.
"""

from __future__ import annotations

import argparse
import platform
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
import scipy

from patchguard.config import ForegroundConfig
from patchguard.data.folder import scan
from patchguard.data.foreground import chosen_method, foreground_masks
from patchguard.data.samples import defect_mask
from patchguard.errors import PatchGuardError


@dataclass
class Coverage:
    """One image: its kind of defect, defect pixels, those on the foreground, foreground share."""

    kind: str
    defect: int
    covered: int
    area: float


def measure(data: Path, config: ForegroundConfig) -> tuple[str, list[Coverage], float]:
    """The method used, the coverage of every image, and CPU seconds per image."""
    samples = [sample for sample in scan(data).test if sample.masks]
    if not samples:
        raise PatchGuardError(f"{data}: no test image has a mask; give an MVTec-style tree")
    with TemporaryDirectory() as cache:
        start = process_time()
        sources = [sample.source for sample in samples]
        method = chosen_method(sources, config, cache=Path(cache))
        chosen = replace(config, method=method)
        masks = list(foreground_masks(sources, chosen, cache=Path(cache)))
        seconds = (process_time() - start) / len(samples)
    coverages = []
    for sample, mask in zip(samples, masks, strict=True):
        defect = defect_mask(sample)
        covered = int((defect & mask).sum())
        coverages.append(Coverage(sample.kind, int(defect.sum()), covered, float(mask.mean())))
    return method, coverages, seconds


def table(coverages: list[Coverage]) -> Iterator[str]:
    kinds: dict[str, list[Coverage]] = defaultdict(list)
    for coverage in coverages:
        kinds[coverage.kind].append(coverage)
    yield f"{'kind':<22}{'images':>7}{'coverage':>10}{'min':>8}{'area':>8}{'max area':>10}"
    for kind, rows in (*sorted(kinds.items()), ("all", coverages)):
        pooled = sum(row.covered for row in rows) / sum(row.defect for row in rows)
        least = min(row.covered / row.defect for row in rows)
        areas = [row.area for row in rows]
        yield (
            f"{kind:<22}{len(rows):>7}{pooled:>10.4f}{least:>8.3f}"
            f"{np.mean(areas):>8.3f}{max(areas):>10.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--method", choices=["auto", "border", "gradcam", "attention", "full"], default="border"
    )
    parser.add_argument("--weights")
    arguments = parser.parse_args()
    config = ForegroundConfig(method=arguments.method, weights=arguments.weights)
    try:
        method, coverages, seconds = measure(arguments.data, config)
    except PatchGuardError as error:
        raise SystemExit(f"error: {error}") from None
    print(
        f"{arguments.data.name}, method {method}: share of the defect pixels that lie on the "
        "foreground\nmask of their own test image (pooled over images; min: worst image), and "
        "the mask's share of\nthe image. "
        f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}."
    )
    print("\n".join(table(coverages)))
    print(f"{1000 * seconds:.0f} ms of CPU time per image, reading and hashing included")


if __name__ == "__main__":
    main()
