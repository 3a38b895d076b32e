"""All attacks with small settings: what every one of them must fulfil is tested on this table."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from detectors import Network
from patchguard.attacks import (
    APGD,
    NES,
    PGD,
    PGDL0,
    Attack,
    LocalPatch,
    RandomNoise,
    SigmaZero,
    SimBA,
    Square,
    Transfer,
    UniversalPerturbation,
)
from patchguard.attacks.attack import at_image, uniform
from patchguard.attacks.balls import BALLS
from patchguard.attacks.objectives import Objective, image_score
from patchguard.attacks.patch import PATCH_BALL
from patchguard.attacks.sparse import L0_BALL
from patchguard.attacks.starts import ODI, decontraster

EPS = {
    "linf": (2 / 255, 16 / 255),
    "l2": (0.2, 1.0),
    "l1": (1.0, 8.0),
    "l0": (2, 10),
    "patch": (4 / 64, 16 / 64),
}
"""A small and a large radius for images of 8 x 8 pixels."""


@dataclass(frozen=True)
class Target:
    """An attack with its settings.

    Attributes:
        kind: its class.
        settings: beside the objective.
        draws: it draws at random; one that does not treats each image as if it were alone.
    """

    kind: type[Attack]
    settings: Mapping[str, Any]
    draws: bool = True

    def make(self, objective: Objective = image_score, **more: Any) -> Attack:
        return self.kind(objective, **{**self.settings, **more})

    @property
    def eps(self) -> tuple[float, float]:
        return EPS[self.make().ball.name]

    @property
    def keeps_best(self) -> bool:
        return self.make().keep_best


def example() -> type[Attack]:
    """The attack that the guide in docs/evaluation.md adds."""
    guide = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    code = guide.split("## Adding an attack")[1].split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"__name__": "guide"}
    exec(code, names)
    added: type[Attack] = names["Momentum"]
    return added


EXAMPLE = example()
IMAGE, TWICE = {"starts": [at_image]}, {"starts": [uniform, at_image]}
L2, L1 = ({"ball": BALLS[norm]} for norm in ("l2", "l1"))

TARGETS = {
    "pgd": Target(PGD, {"steps": 4} | TWICE),
    "pgd from the image": Target(PGD, {"steps": 4} | IMAGE, draws=False),
    "pgd last iterate": Target(PGD, {"steps": 4, "start": 0.5, "keep_best": False}),
    "pgd l2": Target(PGD, {"steps": 4} | L2),
    "pgd l1": Target(PGD, {"steps": 4} | L1),
    "pgd l0": Target(PGD, {"steps": 4, "ball": L0_BALL}),
    "pgd patch": Target(PGD, {"steps": 4, "ball": PATCH_BALL}),
    "legacy": Target(PGD, {"steps": 4, "start": 0.0, "keep_best": False}, draws=False),
    "apgd": Target(APGD, {"steps": 6} | TWICE),
    "apgd from the image": Target(APGD, {"steps": 6} | IMAGE, draws=False),
    "apgd radii": Target(APGD, {"steps": 10, "radii": [2, 1.5, 1]}),
    "apgd l2": Target(APGD, {"steps": 6} | IMAGE | L2, draws=False),
    "apgd l1": Target(APGD, {"steps": 8} | IMAGE | L1, draws=False),
    "apgd l1 radii": Target(APGD, {"steps": 10, "radii": [2, 1]} | L1),
    "apgd odi": Target(APGD, {"steps": 8, "starts": [ODI()]}),
    "apgd decontraster": Target(APGD, {"steps": 6, "starts": [decontraster]}, draws=False),
    "square": Target(Square, {"queries": 12} | TWICE),
    "simba pixel": Target(SimBA, {"queries": 21, "basis": "pixel"}),
    "simba dct": Target(SimBA, {"queries": 21, "frequencies": 4}),
    "simba l2": Target(SimBA, {"queries": 21} | L2),
    "nes": Target(NES, {"steps": 3, "samples": 6, "sigma": 0.01}),
    "noise": Target(RandomNoise, {"draws": 10}),
    "noise l1": Target(RandomNoise, {"draws": 10} | L1),
    "pgd-l0": Target(PGDL0, {"steps": 4}),
    "pgd-l0 from the image": Target(PGDL0, {"steps": 4} | IMAGE, draws=False),
    "sigma-zero": Target(SigmaZero, {"steps": 6}),
    "sigma-zero from the image": Target(SigmaZero, {"steps": 6} | IMAGE, draws=False),
    "patch": Target(LocalPatch, {"steps": 4, "probes": 2}),
    "patch by gradients": Target(LocalPatch, {"steps": 4, "random_places": 0} | IMAGE, draws=False),
    "transfer": Target(Transfer, {"steps": 5, "source": Network(2)} | TWICE),
    "transfer apgd": Target(
        Transfer, {"steps": 6, "source": Network(2), "inner": APGD} | IMAGE, draws=False
    ),
    "universal": Target(UniversalPerturbation, {"steps": 3, "batch_size": 2}),
    "guide": Target(EXAMPLE, {"steps": 4}),
    "universal shared": Target(UniversalPerturbation, {"steps": 3, "shared": True}),
}

each = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
each_keeping_best = pytest.mark.parametrize(
    "target",
    [target for target in TARGETS.values() if target.keeps_best],
    ids=[name for name, target in TARGETS.items() if target.keeps_best],
)
KINDS = sorted({target.kind for target in TARGETS.values()}, key=lambda kind: kind.__name__)
