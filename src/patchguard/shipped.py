"""Recipes by their settings, and how one differs from the shipped recipe of its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import yaml

from patchguard.config import RECIPES, Recipe, load_recipe


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name."""
    for name, value in content.items():
        if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """What decides a recipe's figures, by dotted name: all but who prepares the batches."""
    content = yaml.safe_load(yaml.safe_dump(asdict(recipe)))
    del content["data"]["workers"]
    return dict(flat(content))


def settings_digest(settings: Mapping[str, Any]) -> str:
    """The first 8 hexadecimal digits of the sha256 of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def measured_with(name: str, recipe: Recipe) -> str:
    """One line: whether what was measured is what is shipped, and if not, what differs."""
    settings = recipe_settings(recipe)
    own = settings_digest(settings)
    if not (RECIPES / f"{name}.yaml").exists():
        return f"Measured with: `{name}` (settings {own}), which is not shipped."
    shipped = recipe_settings(load_recipe(name))
    differing = [
        f"{key} {_told(settings.get(key))} (shipped: {_told(shipped.get(key))})"
        for key in dict.fromkeys((*shipped, *settings))
        if settings.get(key) != shipped.get(key)
    ]
    if not differing:
        return f"Measured with: `{name}` as shipped (settings {own})."
    return (
        f"Measured with: `{name}` in another form than shipped (settings {own}, shipped: "
        f"{settings_digest(shipped)}): {', '.join(differing)}."
    )


def _told(value: Any) -> str:
    return json.dumps(value)
