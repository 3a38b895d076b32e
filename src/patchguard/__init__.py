"""PatchGuard: adversarially robust visual anomaly detection."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from patchguard.api import (
        demo,
        doctor,
        evaluate,
        fit,
        load,
        predict,
        study,
        write_anomalies,
        write_leaderboard,
        write_report,
        write_synthetic,
    )
    from patchguard.config import EvaluationConfig, Recipe, load_recipe
    from patchguard.detector import Detection, Detector
    from patchguard.errors import PatchGuardError
    from patchguard.models.patchguard import PatchGuard

_HOMES = {
    "demo": "api",
    "doctor": "api",
    "evaluate": "api",
    "fit": "api",
    "load": "api",
    "predict": "api",
    "study": "api",
    "write_anomalies": "api",
    "write_leaderboard": "api",
    "write_report": "api",
    "write_synthetic": "api",
    "Detection": "detector",
    "Detector": "detector",
    "EvaluationConfig": "config",
    "PatchGuard": "models.patchguard",
    "PatchGuardError": "errors",
    "Recipe": "config",
    "load_recipe": "config",
}

__all__ = [
    "Detection",
    "Detector",
    "EvaluationConfig",
    "PatchGuard",
    "PatchGuardError",
    "Recipe",
    "__version__",
    "demo",
    "doctor",
    "evaluate",
    "fit",
    "load",
    "load_recipe",
    "predict",
    "study",
    "write_anomalies",
    "write_leaderboard",
    "write_report",
    "write_synthetic",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'patchguard' has no attribute {name!r}")
    return getattr(import_module(f"patchguard.{_HOMES[name]}"), name)
