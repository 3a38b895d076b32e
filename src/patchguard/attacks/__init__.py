"""Attacks on anomaly scores and maps, all with the same call: see :class:`Attack`."""

from patchguard.attacks.apgd import APGD
from patchguard.attacks.attack import Attack
from patchguard.attacks.minimal import MinimalEps
from patchguard.attacks.patch import LocalPatch
from patchguard.attacks.pgd import PGD
from patchguard.attacks.queries import NES, RandomNoise, SimBA
from patchguard.attacks.sparse import PGDL0, SigmaZero
from patchguard.attacks.square import Square
from patchguard.attacks.transfer import Transfer
from patchguard.attacks.universal import UniversalPerturbation

__all__ = [
    "APGD",
    "NES",
    "PGD",
    "PGDL0",
    "Attack",
    "LocalPatch",
    "MinimalEps",
    "RandomNoise",
    "SigmaZero",
    "SimBA",
    "Square",
    "Transfer",
    "UniversalPerturbation",
]
