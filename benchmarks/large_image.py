"""Peak memory of predicting one large image, in a process of its own.

    python benchmarks/large_image.py RUN [--width 12000] [--height 8000]

The image is drawn at random, coarsely, so that its PNG is of moderate size. For a small image and
the large one, it prints the peak of the resident memory of a process that loads the detector and
predicts that image, and how long the prediction takes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import patchguard

SMALL = 512


def main() -> None:
    """Measure, in one process for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("--width", type=int, default=12000)
    parser.add_argument("--height", type=int, default=8000)
    parser.add_argument("--image", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.image:
        _predict(arguments.run, arguments.image)
        return
    print(f"run {arguments.run}, one 8-bit RGB PNG, maps written too")
    with TemporaryDirectory() as folder:
        for width, height in ((SMALL, SMALL), (arguments.width, arguments.height)):
            image = Path(folder) / f"{width}x{height}.png"
            _draw(image, width, height)
            command = [sys.executable, __file__, str(arguments.run), "--image", str(image)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print(f"{width} x {height} px: {told.strip()}")


def _draw(path: Path, width: int, height: int) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (height // 64, width // 64, 3), np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)


def _predict(run: Path, image: Path) -> None:
    with TemporaryDirectory() as out:
        began = time.monotonic()
        patchguard.predict(run, image, out=out, maps=True)
        seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak {peak:.0f} MB, {seconds:.1f} s")


if __name__ == "__main__":
    main()
