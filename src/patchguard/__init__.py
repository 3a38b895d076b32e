"""PatchGuard: adversarially robust visual anomaly detection."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from patchguard.api import anomalies, evaluate, fit, load, predict, report
    from patchguard.config import EvaluationConfig, Recipe, load_recipe
    from patchguard.detector import Detection, Detector
    from patchguard.errors import PatchGuardError
    from patchguard.models.patchguard import PatchGuard

_HOMES = {
    "anomalies": "api",
    "evaluate": "api",
    "fit": "api",
    "load": "api",
    "predict": "api",
    "report": "api",
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
    "anomalies",
    "evaluate",
    "fit",
    "load",
    "load_recipe",
    "predict",
    "report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'patchguard' has no attribute {name!r}")
    return getattr(import_module(f"patchguard.{_HOMES[name]}"), name)
