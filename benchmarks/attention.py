"""The claim that wide attention makes robust, on trained detectors: block by block.

    python benchmarks/attention.py DATA RUN [RUN ...] [--images 8] [--eps 8/255] [--seed 0]

DATA is a folder of normal images, or an MVTec-style tree, of which the normal training images are
taken: no test image is looked at. For each block of each run: the attention degree (mean over
heads, and its range over them); the largest singular value of the Jacobian of a token's output, and
of the whole sub-layer, beside what the theory bounds them by; and by how much an attack on the
score (APGD-50) changes the block's input and output.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

import patchguard
from patchguard.attacks.apgd import APGD
from patchguard.attacks.objectives import image_score
from patchguard.config import parse_eps
from patchguard.data.folder import scan
from patchguard.data.images import read_pixels
from patchguard.data.windows import WHOLE_PLACE, squeezed
from patchguard.detector import to_tensor
from patchguard.models.attention import attention_degrees
from patchguard.models.patchguard import PatchGuard, Placed
from patchguard.models.sensitivity import attention_change, attention_sensitivity
from patchguard.results.model_file import read_model

HEADINGS = (
    f"{'block':>5} {'degree':>7} {'heads':>11}   {'token':>7} {'bound':>8}   {'layer':>7} "
    f"{'bound':>8}   {'input':>7} {'output':>7}"
)


def normals(data: Path, count: int, shape: tuple[int, int]) -> Tensor:
    """Images [count, 3, H, W] spread evenly over the normal training images."""
    samples = scan(data).train
    chosen = torch.linspace(0, len(samples) - 1, min(count, len(samples))).round().long().tolist()
    images = (read_pixels(samples[index].source).resized(shape) for index in chosen)
    return torch.stack([to_tensor(image) for image in images])


def attacked(model: Placed, images: Tensor, eps: float, seed: int) -> Tensor:
    """The images, their scores driven up."""
    normal = torch.zeros(len(images), dtype=torch.bool)
    attack = APGD(image_score, steps=50)
    generator = torch.Generator().manual_seed(seed)
    (result,) = attack(
        model, images, normal, torch.zeros_like(images[:, 0]), eps=[eps], generator=generator
    )
    return result


def rows(model: PatchGuard, images: Tensor, eps: float, seed: int) -> list[str]:
    """A line for each block."""
    whole = images.new_tensor(WHOLE_PLACE).expand(len(images), 4)
    placed = Placed(model, whole)
    degrees = attention_degrees(placed, images)
    generator = torch.Generator().manual_seed(seed)
    sensitivity = attention_sensitivity(placed, images, generator=generator)
    change = attention_change(placed, images, attacked(placed, images, eps, seed))
    return [
        f"{number:5} {degree.mean():7.1f} {degree.min():5.1f}-{degree.max():5.1f}   "
        f"{block.token_norm.mean():7.3f} {block.token_bound.total.mean():8.3f}   "
        f"{block.layer_norm.mean():7.3f} {block.layer_bound.total.mean():8.3f}   "
        f"{moved:7.3f} {answered:7.3f}"
        for number, degree, block, moved, answered in zip(
            range(1, len(degrees) + 1),
            degrees,
            sensitivity,
            change.tokens.mean(1).tolist(),
            change.output.mean(1).tolist(),
            strict=True,
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(
        f"{arguments.data.name}, {arguments.images} normal training images, APGD-50 on the score "
        f"at {arguments.eps}, seed {arguments.seed}, torch {version('torch')}"
    )
    print("token, layer: largest singular value of the Jacobian; input, output: relative change")
    for run in arguments.runs:
        model = patchguard.load(run)
        images = normals(arguments.data, arguments.images, read_model(run).preprocessing.shape)
        # One window each: attention is within a window.
        images = squeezed(images, model.config.window)
        tokens = model.grid**2 + model.backbone.num_prefix_tokens
        print(f"\n{run.name} ({tokens} tokens)\n{HEADINGS}")
        eps = parse_eps(arguments.eps)
        print("\n".join(rows(model, images, eps, arguments.seed)), flush=True)


if __name__ == "__main__":
    main()
