"""PatchGuard: a Vision Transformer that scores every patch, in windows and in the whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from patchguard.config import ModelConfig, View
from patchguard.data.windows import WHOLE_PLACE, squeezed
from patchguard.detector import Detection, Detector, Inspection
from patchguard.errors import PatchGuardError
from patchguard.models.discriminator import Discriminator, top_mean
from patchguard.models.vit import (
    create_backbone,
    embedded,
    encoded,
    normalisation,
    patch_side,
    shares_stem,
)
from patchguard.models.weights import start_from_run
from patchguard.models.windows import (
    averaged,
    cut,
    first_patches,
    padded,
    places,
    smoothing,
    spreading,
    windows_over,
)
from patchguard.results.run_folder import named_run

AT_ONCE, AT_ONCE_ON_GPU = 256, 1024
"""Windows in one pass, about a gigabyte for the small network; of more than that, activations are
made again on the way back."""

REACH = 3
"""Patches around a patch that a stem may look at."""

FEW = 3
"""Patches in the mean of a score before the images have chosen how many."""


@dataclass(frozen=True)
class ViewScore:
    """How the patch logits of a view become its image score, on the scale of the other views.

    Attributes:
        patches: the score is the mean of that many largest patch logits.
        centre: subtracted from that mean, and from the logits of the map.
        scale: what is left is divided by it.
    """

    patches: int
    centre: float = 0.0
    scale: float = 1.0

    def scaled(self, values: Tensor) -> Tensor:
        """Raw values on the common scale."""
        return (values - self.centre) / self.scale


class Seen(NamedTuple):
    """What a view shows.

    Attributes:
        logits: patch logits [B, h, w], raw.
        features: the backbone's tokens [B, N, C] of the same patches; None where not asked for.
    """

    logits: Tensor
    features: Tensor | None


class PatchGuard(Detector):
    """Views → backbone → discriminator → patch logits → image score and pixel map.

    The view ``windows`` covers the image at its own resolution with overlapping windows, whose
    logits are averaged; the view ``whole`` is the image squeezed into one window. One network
    looks at both. Scores of several views are put on one scale (:class:`ViewScore`) and joined by a
    smooth maximum, so that neither drowns the other.

    Args:
        config: the network's settings.
        scores: of each view; the mean of the :data:`FEW` largest patch logits when absent.
        span: darkest and brightest value of the data, which the network sees as 0 and 1.

    Raises:
        PatchGuardError: a backbone that does not exist, is no ViT, or does not suit the window;
            weights that cannot be had or are those of another network.
    """

    def __init__(
        self,
        config: ModelConfig,
        scores: Mapping[View, ViewScore] | None = None,
        span: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        low, high = span or (0.0, 1.0)
        self.span = (low, high)
        self.scores = dict(scores or dict.fromkeys(config.views, ViewScore(FEW)))
        run = named_run(config.weights)
        self.backbone = create_backbone(
            config.backbone, config.window, "none" if run else config.weights
        )
        if self.backbone.embed_dim % config.heads:
            raise PatchGuardError(
                f"model.heads {config.heads} does not divide {config.backbone}'s width "
                f"{self.backbone.embed_dim}"
            )
        mean, std = normalisation(self.backbone)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.grid = self.backbone.patch_embed.grid_size[0]
        self.patch = patch_side(self.backbone)
        self.stride = max(1, math.floor(config.stride * self.grid))
        self.discriminator = Discriminator(
            self.grid * self.grid,
            self.backbone.embed_dim,
            config.heads,
            config.hidden,
            config.dropout,
            config.position_std,
            placed="windows" in config.views,
        )
        if run:
            start_from_run(self, self.grid, config, run)

    @property
    def contrast(self) -> float:
        """How much of [0, 1] the data span."""
        return self.span[1] - self.span[0]

    @property
    def blocks(self) -> list[nn.Module]:
        """The backbone's transformer blocks, first to last."""
        return list(self.backbone.blocks)

    def extra_repr(self) -> str:
        return f"{self.scores}, span={self.span}"

    def forward(self, images: Tensor) -> Detection:
        views = self.views(images)
        joined = self._joined_logits(views, images)
        return Detection(self._joined(self.view_scores(views)), self._map(joined, images))

    def inspect(self, images: Tensor) -> Inspection:
        """The detection, its patch logits (views joined) and, as features, patch tokens."""
        views = self.views(images, features=True)
        joined = self._joined_logits(views, images)
        return Inspection(
            self._joined(self.view_scores(views)),
            self._map(joined, images),
            patch_logits=joined,
            features=views[self.config.views[0]].features,
        )

    def at_once(self, height: int, width: int) -> int | None:
        windows = 1
        if "windows" in self.config.views:
            shape = (height, width)
            windows += windows_over(shape, self.config.window, self.patch, self.stride)
        return max(1, self._windows_at_once // windows)

    @property
    def _windows_at_once(self) -> int:
        return AT_ONCE_ON_GPU if cast(Tensor, self.mean).is_cuda else AT_ONCE

    def decided_by(self, images: Tensor) -> list[str] | None:
        if len(self.config.views) == 1:
            return None
        scores = self.view_scores(self.views(images))
        names = list(scores)
        return [names[place] for place in torch.stack(list(scores.values())).argmax(0).tolist()]

    def views(self, images: Tensor, features: bool = False) -> dict[View, Seen]:
        """What each view shows of images [B, 3, H, W] in [0, 1]; features where asked for."""
        return {view: self.look(images, view, features) for view in self.config.views}

    def look(self, images: Tensor, view: View, features: bool = False) -> Seen:
        """What one view shows of images [B, 3, H, W] in [0, 1]; features where asked for."""
        return self._windows(images, features) if view == "windows" else self._whole(images)

    def view_scores(self, views: Mapping[View, Seen]) -> dict[View, Tensor]:
        """The scores [B] of each view on the common scale."""
        return {
            view: score.scaled(top_mean(_precise(views[view].logits), score.patches))
            for view, score in self.scores.items()
        }

    def window_logits(self, windows: Tensor, places: Tensor) -> Seen:
        """Patch logits [B, g, g] and tokens of windows [B, 3, w, w] that lie at ``places`` [B, 4].

        Args:
            windows: in [0, 1].
            places: top, left, height and width as fractions of the image.
        """
        return self._encoded(self._embedded(windows), places)

    def smooth(self, logits: Tensor, height: int, width: int) -> Tensor:
        """The pixel map [B, height, width] of patch logits [B, h, w]."""
        blur = self.config.blur_sigma, self.config.blur_radius
        precise = _precise(logits)
        down, right = (
            smoothing(patches, self.patch, pixels, *blur, logits.device).to(precise.dtype)
            for patches, pixels in zip(logits.shape[1:], (height, width), strict=True)
        )
        return down @ precise @ right.T

    def _map(self, logits: Tensor, images: Tensor) -> Tensor:
        """The pixel map [B, H, W] of the joined patch logits [B, h, w] of images [B, 3, H, W].

        Where the whole is all that is seen, the map is stretched as the images were squeezed.
        """
        window, shape = self.config.window, (images.shape[-2], images.shape[-1])
        if "windows" in self.config.views or shape == (window, window):
            return self.smooth(logits, *shape)
        small = self.smooth(logits, window, window)[:, None]
        return nn.functional.interpolate(small, shape, mode="bilinear", align_corners=False)[:, 0]

    def _embedded(self, images: Tensor) -> Tensor:
        """Patch embeddings [B, C, h, w] of images [B, 3, H, W] of whole patches."""
        stretched = (images - self.span[0]) / self.contrast
        normalised = (stretched - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        return embedded(self.backbone, normalised)

    def _encoded(self, embeddings: Tensor, places: Tensor) -> Seen:
        """What the network makes of the embeddings [B, C, g, g] of windows."""
        tokens = encoded(self.backbone, embeddings)
        logits: Tensor = self.discriminator(tokens, places)
        return Seen(logits.view(-1, self.grid, self.grid), tokens)

    def _whole(self, images: Tensor) -> Seen:
        place = images.new_tensor(WHOLE_PLACE).expand(len(images), 4)
        return self.window_logits(squeezed(images, self.config.window), place)

    def _windows(self, images: Tensor, features: bool) -> Seen:
        window, patch = self.config.window, self.patch
        shape = (images.shape[-2], images.shape[-1])
        whole = padded(images, window, patch)
        patches = (whole.shape[-2] // patch, whole.shape[-1] // patch)
        rows, cols = (first_patches(side, self.grid, self.stride) for side in patches)
        logits, tokens = [], []
        groups = list(_grouped(rows, max(1, self._windows_at_once // (len(images) * len(cols)))))
        for some in groups:
            strip = self._strip(whole, some, cols, shape, again=len(groups) > 1)
            logits.append(strip[0])
            tokens += [strip[1]] if features else []
        merged = averaged(torch.cat(logits, 1), rows, cols, patches)
        if not features:
            return Seen(merged, None)
        channels = torch.cat(tokens, 1).permute(0, 5, 1, 2, 3, 4).flatten(0, 1)
        means = averaged(channels, rows, cols, patches).view(len(images), -1, math.prod(patches))
        return Seen(merged, means.transpose(1, 2))

    def _strip(
        self,
        images: Tensor,
        rows: list[int],
        cols: list[int],
        shape: tuple[int, int],
        again: bool,
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, R, C, g, g] and tokens [B, R, C, g, g, D] of the windows of some rows.

        Rows and columns are those of the first patches. ``again``: activations are not kept but
        made again on the way back, as where other rows follow.
        """
        count = len(images) * len(rows) * len(cols)
        at = places(
            tuple(self.patch * row for row in rows),
            tuple(self.patch * col for col in cols),
            self.config.window,
            shape,
            images.device,
        ).to(images.dtype)

        def look(images: Tensor) -> tuple[Tensor, Tensor]:
            embeddings = self._window_embeddings(images, rows, cols).flatten(0, 2)
            seen = self._encoded(embeddings, at.expand(len(images), -1, -1, -1).flatten(0, 2))
            split = (len(images), len(rows), len(cols), self.grid, self.grid)
            assert seen.features is not None
            return seen.logits.view(split), seen.features.view(*split, -1)

        if torch.is_grad_enabled() and (again or count > self._windows_at_once):
            kept: tuple[Tensor, Tensor] = checkpoint(look, images, use_reentrant=False)
            return kept
        return look(images)

    def _window_embeddings(self, images: Tensor, rows: list[int], cols: list[int]) -> Tensor:
        """[B, R, C, D, g, g]; where the stem allows it, it runs once over what windows share."""
        patch, window = self.patch, self.config.window
        if not shares_stem(self.backbone):
            down, right = ([patch * first for first in axis] for axis in (rows, cols))
            windows = cut(images, down, right, window)
            found = self._embedded(windows.flatten(0, 2))
            return found.view(*windows.shape[:3], *found.shape[1:])
        first = max(0, rows[0] - REACH)
        last = rows[-1] + self.grid + REACH
        shared = self._embedded(images[:, :, patch * first : patch * last])
        return cut(shared, [row - first for row in rows], cols, self.grid)

    def _joined_logits(self, views: Mapping[View, Seen], images: Tensor) -> Tensor:
        """The logits of all views of images [B, 3, H, W] on the patches of the finest, joined."""
        grid = views[self.config.views[0]].logits.shape[1:]
        return self._joined(
            {
                view: self._spread(score.scaled(_precise(views[view].logits)), grid, images)
                for view, score in self.scores.items()
            }
        )

    def _spread(self, logits: Tensor, grid: torch.Size, images: Tensor) -> Tensor:
        """Patch logits [B, h, w] of the whole of some images on a finer grid of patches."""
        if logits.shape[1:] == grid:
            return logits
        down, right = (
            spreading(whole, patches, self.patch, pixels, logits.device).to(logits.dtype)
            for whole, patches, pixels in zip(
                logits.shape[1:], grid, images.shape[-2:], strict=True
            )
        )
        return down @ logits @ right.T

    def _joined(self, views: Mapping[View, Tensor]) -> Tensor:
        """A smooth maximum of what several views say on one scale."""
        values = torch.stack(list(views.values()))
        if len(values) == 1:
            return values[0]
        return values.logsumexp(0) - math.log(len(values))


class Placed(Detector):
    """The network alone, on windows cut beforehand: what training attacks and learns from.

    Args:
        model: the detector.
        places: of the windows that it will be given, [B, 4].
    """

    def __init__(self, model: PatchGuard, places: Tensor) -> None:
        super().__init__()
        self.model = model
        self.places = places

    @property
    def blocks(self) -> list[nn.Module]:
        """The backbone's transformer blocks, first to last."""
        return self.model.blocks

    def patch_logits(self, windows: Tensor) -> Tensor:
        """Patch logits [B, g, g] of windows [B, 3, w, w]."""
        return self.model.window_logits(windows, self.places).logits

    def inspect(self, images: Tensor) -> Inspection:
        logits, features = self.model.window_logits(images, self.places)
        anomaly_map = self.model.smooth(logits, images.shape[-2], images.shape[-1])
        return Inspection(top_mean(_precise(logits), FEW), anomaly_map, logits, features)

    def forward(self, images: Tensor) -> Detection:
        seen = self.inspect(images)
        return Detection(seen.score, seen.anomaly_map)


def _precise(logits: Tensor) -> Tensor:
    """Not in half precision under autocast."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _grouped(rows: list[int], size: int) -> Iterator[list[int]]:
    """Rows, that many at a time."""
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
