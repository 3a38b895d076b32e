"""From a template to one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from patchguard.files import encodable

GENERATOR = '<meta name="generator" content="PatchGuard">'
"""What every page says of itself."""

TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, context: Mapping[str, Any]) -> str:
    """The HTML of a template; everything in the context is escaped unless it is markup."""
    return encodable(_environment().get_template(template).render(**context))


@cache
def _environment() -> Environment:
    """One for all pages, as it keeps the templates that it compiled."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
