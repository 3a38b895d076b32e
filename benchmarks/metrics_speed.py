"""Time for pixel metrics, against scikit-learn (AUROC, AP) and anomalib (AUPRO).

All three get the same float32 maps: smoothed noise, a little higher on the elliptic regions of
three quarters of the images. Ours gives AUROC, AP, F1-max and AUPRO at once. anomalib is timed
where it is installed. With ``--streamed``, instead, what an evaluation of many large masks takes:
maps at a detector's size, resized to each mask on the way.

    OMP_NUM_THREADS=1 python benchmarks/metrics_speed.py
    OMP_NUM_THREADS=1 python benchmarks/metrics_speed.py --streamed --images 1000 --size 1024
"""

import argparse
import importlib.util
import platform
import resource
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from statistics import median
from time import process_time

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from patchguard.data.images import resize_map
from patchguard.evaluation.metrics import pixel_metrics
from patchguard.evaluation.pixels import metrics_of

DETECTOR_SIZE = 112

Maps = list[npt.NDArray[np.float32]]
Masks = list[npt.NDArray[np.bool_]]
Metrics = dict[str, float]
Compute = Callable[[Maps, Masks], Metrics]


def make_mask(size: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Up to three elliptic regions, each up to a tenth of the image wide and high."""
    rows, cols = np.mgrid[:size, :size]
    mask = np.zeros((size, size), dtype=bool)
    for _ in range(rng.integers(1, 4)):
        centre, radii = rng.uniform(0, size, 2), rng.uniform(2, size / 20, 2)
        mask |= ((rows - centre[0]) / radii[0]) ** 2 + ((cols - centre[1]) / radii[1]) ** 2 <= 1
    return mask


def make_maps(images: int, size: int, seed: int) -> tuple[Maps, Masks]:
    rng = np.random.default_rng(seed)
    normal = np.zeros((size, size), dtype=bool)
    masks = [normal if i % 4 == 0 else make_mask(size, rng) for i in range(images)]
    maps = []
    for mask in masks:
        noise = ndimage.gaussian_filter(rng.standard_normal(mask.shape, dtype=np.float32), 4)
        maps.append(noise / noise.std() + np.float32(1.5) * mask)
    return maps, masks


def ours(maps: Maps, masks: Masks) -> Metrics:
    metrics = pixel_metrics(maps, masks)
    return {"AUROC": metrics.auroc, "AP": metrics.ap, "AUPRO@0.3": metrics.aupro}


def scikit_learn(maps: Maps, masks: Masks) -> Metrics:
    scores = np.concatenate([m.ravel() for m in maps])
    labels = np.concatenate([m.ravel() for m in masks])
    return {
        "AUROC": float(roc_auc_score(labels, scores)),
        "AP": float(average_precision_score(labels, scores)),
    }


def anomalib_aupro(maps: Maps, masks: Masks) -> Metrics:
    import torch
    from anomalib.metrics.aupro import _AUPRO

    torch.set_num_threads(1)
    metric = _AUPRO(fpr_limit=0.3)
    metric.update(torch.from_numpy(np.stack(maps)), torch.from_numpy(np.stack(masks)).int())
    return {"AUPRO@0.3": float(metric.compute())}


def peers() -> dict[str, Compute]:
    found: dict[str, Compute] = {"scikit-learn": scikit_learn}
    if importlib.util.find_spec("anomalib"):
        found["anomalib"] = anomalib_aupro
    return found


def timed(compute: Callable[[], Metrics], rounds: int) -> tuple[float, Metrics]:
    """Median processor time in seconds after one round to warm up, and the result."""
    result, seconds = compute(), []
    for _ in range(rounds):
        start = process_time()
        result = compute()
        seconds.append(process_time() - start)
    return median(seconds), result


def peak_megabytes(compute: Callable[[], Metrics]) -> float:
    """What the call allocates at its peak, on top of its input; numpy reports to tracemalloc."""
    tracemalloc.start()
    compute()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def peak_rss() -> float:
    """The most memory that the process has held so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def streamed(images: int, size: int, seed: int) -> None:
    """Print time and memory of exact metrics of maps at the detector's size."""
    rng = np.random.default_rng(seed)
    masks = [make_mask(size, rng) if index % 4 else make_normal(size) for index in range(images)]
    maps = np.empty((images, DETECTOR_SIZE, DETECTOR_SIZE), dtype=np.float32)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        noise = rng.standard_normal(anomaly_map.shape, dtype=np.float32)
        anomaly_map[:] = noise + 3 * resize_map(mask.astype(np.float32), anomaly_map.shape)
    before, start = peak_rss(), process_time()
    found = metrics_of(maps, masks)
    seconds, peak = process_time() - start, peak_rss()
    print(
        f"{images} masks of {size} x {size} px, {np.mean([m.mean() for m in masks]):.2%} anomalous "
        f"pixels, maps of {DETECTOR_SIZE} px: {seconds:.0f} s, peak RSS {peak:.0f} MB, "
        f"{before:.0f} MB of it held before; all maps at once would be "
        f"{images * size**2 * 4 / 1e6:.0f} MB; AUROC {found.auroc:.7f}, AUPRO {found.aupro:.7f}"
    )


def make_normal(size: int) -> npt.NDArray[np.bool_]:
    return np.zeros((size, size), dtype=bool)


def row(name: str, seconds: float, metrics: Metrics, ratio: float) -> str:
    values = "  ".join(f"{key} {value:.7f}" for key, value in metrics.items())
    return f"{name:14s} {seconds:7.2f} s  {ratio:5.1f} x ours  {values}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--streamed", action="store_true")
    args = parser.parse_args()

    if args.streamed:
        streamed(args.images, args.size, args.seed)
        return
    maps, masks = make_maps(args.images, args.size, args.seed)
    contenders = peers()
    versions = ", ".join(f"{name} {version(name)}" for name in ["numpy", "scipy", *contenders])
    print(
        f"{args.images} maps of {args.size} x {args.size} px, float32, "
        f"{np.mean([m.mean() for m in masks]):.2%} anomalous pixels, seed {args.seed}; "
        f"processor time, one thread, median of {args.rounds} rounds after a warm-up; "
        f"{platform.machine()}, python {platform.python_version()}, {versions}"
    )
    own_seconds, metrics = timed(partial(ours, maps, masks), args.rounds)
    print(row("ours (all)", own_seconds, metrics, 1.0))
    total = 0.0
    for name, peer in contenders.items():
        seconds, metrics = timed(partial(peer, maps, masks), args.rounds)
        total += seconds
        print(row(name, seconds, metrics, seconds / own_seconds))
    print(f"peers together: {total / own_seconds:.1f} x ours")
    print(f"ours allocates at most {peak_megabytes(partial(ours, maps, masks)):.0f} MB")


if __name__ == "__main__":
    main()
