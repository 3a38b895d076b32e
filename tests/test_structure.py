"""What keeps the house easy to walk through: one name for one thing, and no circles."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import patchguard

PACKAGE = Path(patchguard.__file__).parent
MODULES = {
    ".".join(("patchguard", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): ast.parse(path.read_text(encoding="utf-8"))
    for path in PACKAGE.rglob("*.py")
}


def public_names(module: ast.Module) -> set[str]:
    """What a module defines at its top, private names left out."""
    names = set()
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def imported(module: ast.Module) -> set[str]:
    """The modules of the package that a module imports, wherever in it, also for types only."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def test_a_name_stands_in_one_module() -> None:
    homes = defaultdict(set)
    for name, module in MODULES.items():
        for public in public_names(module):
            homes[public].add(name)
    several = {name: found for name, found in homes.items() if len(found) > 1}
    # The verbs are functions of the api and commands of the command line.
    verbs = {"patchguard.api", "patchguard.cli"}
    assert {name: found for name, found in several.items() if found != verbs} == {}


def test_imports_go_round_in_no_circle() -> None:
    graph = {name: imported(module) - {name} for name, module in MODULES.items()}
    TopologicalSorter(graph).prepare()
