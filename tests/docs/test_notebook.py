"""The notebook's code compiles and uses public names; ``benchmarks/documented.py`` runs it in a kernel."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator

import pytest

import md_export
from fenced import ROOT

NOTEBOOK = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
# Modules that the page of the API names as public.
MODULES = frozenset({"md_export.errors", "md_export.mil"})
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def not_public(code: str) -> Iterator[str]:
    """Names of md_export that are not public: submodules, and attributes that the package does not list."""
    tree = ast.parse(code)
    packages = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "md_export"
    }
    public = set(dir(md_export))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = {alias.name for alias in node.names if alias.name.startswith("md_export.")}
            yield from modules - MODULES
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("md_export"):
            known = public if node.module == "md_export" else set()
            names = [] if node.module in MODULES else [alias.name for alias in node.names]
            yield from (f"{node.module}.{name}" for name in names if name not in known)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in packages:
            yield from [] if node.attr in public else [f"md_export.{node.attr}"]


def test_every_cell_compiles_and_uses_public_names() -> None:
    code = "\n".join(CELLS)
    assert "export(" in code and "verify(" in code and "generate(" in code
    assert list(not_public(code)) == []


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("from md_export.engine.export import export", "md_export.engine.export.export"),
        ("from md_export import exports", "md_export.exports"),
        ("import md_export as md\nmd.judge('out')", "md_export.judge"),
        ("import md_export.spec", "md_export.spec"),
    ],
)
def test_a_private_name_is_found(code: str, name: str) -> None:
    assert list(not_public(code)) == [name]


def test_it_is_kept_without_a_machine_in_it() -> None:
    """No path of whoever ran it, and no kernel of a name that readers do not have."""
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    assert not any(word in json.dumps(NOTEBOOK) for word in ("/home/", "/root/", "/work/", "/tmp/"))  # noqa: S108
