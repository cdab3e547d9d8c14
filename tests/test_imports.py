"""Who may import whom, and that asking for help loads nothing heavy."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import md_export
from md_export import errors
from md_export.cli.exports import TARGET_TITLES
from md_export.targets import TARGETS
from support import installed

PACKAGE = Path(md_export.__file__).parent
HEAVY = (
    "torch",
    "numpy",
    "transformers",
    "coremltools",
    "diffusers",
    "litert_torch",
    "onnx",
    "onnxruntime",
    "coreai",
    "coreai_torch",
    "pydantic",
    "PIL",
    "rich",
)

# Module (longest prefix wins) → what of ours it may import. "lazy" rows are checked at module level only.
DATA = (
    "calibration",
    "errors",
    "tensors",
    "recipe",
    "recipe_file",
    "scheme",
    "storage",
    "budget",
    "files",
    "artifact",
    "manifest",
    "pages",
    "sampler",
    "visible",
    "names",
)
ALLOWED: dict[str, tuple[str, ...]] = {
    "errors": (),
    "tensors": ("errors",),
    "quiet": (),
    "visible": (),
    "names": (),
    "data": (),
    "files": ("errors",),
    "npz": ("errors", "tensors"),
    "scheme": ("errors",),
    "budget": (),
    "calibration": ("errors",),
    "sampler": ("errors",),
    "loras": ("errors",),
    "recipe": ("budget", "calibration", "errors", "files", "loras", "names", "sampler", "scheme", "socs"),
    "recipe_file": (
        "budget",
        "calibration",
        "errors",
        "loras",
        "names",
        "recipe",
        "sampler",
        "scheme",
        "toml_file",
        "visible",
    ),
    "toml_file": ("data", "errors", "files"),
    "artifact": ("errors", "files", "tensors"),
    "manifest": ("artifact", "errors", "files", "recipe", "sampler", "visible"),
    "storage": (),
    "kmeans": ("tensors",),
    "quantization": ("quantization", "kmeans", "rewrites", "scheme", "storage"),
    "components": ("components", "errors", "names", "quiet", "tensors"),
    "checkpoint": ("checkpoint", "components", "errors", "loras", "names", "pages"),
    "arch": ("checkpoint", "components", "data", "errors"),
    "init": ("arch", "checkpoint", "components", "errors", "files"),
    "unpack": ("arch", "checkpoint", "components", "errors", "files", "init", "quiet"),
    "inspection": ("components", "checkpoint", "errors"),
    "rewrites": ("rewrites", "components", "artifact", "errors", "names", "sampler"),
    "targets.coreml.mil": ("targets.coreml.mil", "errors"),
    "targets.coreml": (
        "kmeans",
        "targets.coreml",
        "targets.advice",
        "targets.contract",
        "targets.costs",
        "targets.editing",
        "targets.globs",
        "targets.notes",
        "targets.observers",
        "targets.stored",
        *DATA,
    ),
    "targets.tflite": (
        "targets.tflite",
        "targets.advice",
        "targets.bounds",
        "targets.contract",
        "targets.costs",
        "targets.editing",
        "targets.globs",
        "targets.notes",
        "targets.observers",
        "targets.stored",
        *DATA,
    ),
    "targets.onnx": (
        "socs",
        "targets.onnx",
        "targets.contract",
        "targets.costs",
        "targets.editing",
        "targets.globs",
        "targets.half",
        "targets.inputs",
        "targets.notes",
        "targets.observers",
        "targets.stored",
        *DATA,
    ),
    "targets.coreai": (
        "kmeans",
        "targets.coreai",
        "targets.advice",
        "targets.contract",
        "targets.editing",
        "targets.globs",
        "targets.half",
        "targets.inputs",
        "targets.notes",
        "targets.observers",
        "targets.stored",
        *DATA,
    ),
    "targets.editing": (),
    "targets.globs": ("errors", "scheme", "targets.contract"),
    "targets.inputs": ("errors", "tensors"),
    "targets.half": ("errors", "pages"),
    "targets.notes": (),
    "targets.stored": (),
    "targets.observers": ("calibration", "tensors"),
    "targets.advice": ("targets.bounds",),
    "targets.bounds": (),
    "targets.costs": (),
    "targets.trial": ("scheme", "targets.contract", "tensors"),
    "targets.contract": (
        "calibration",
        "recipe",
        "scheme",
        "storage",
        "targets.advice",
        "targets.costs",
        "targets.stored",
        "targets.editing",
        "tensors",
    ),
    "targets": (
        "targets.advice",
        "targets.contract",
        "targets.costs",
        "targets.stored",
        "scheme",
        "storage",
        "targets.editing",
        "targets.globs",
        "errors",
        "tensors",
    ),
    "socs": (),
    "npu": ("artifact", "errors", "executing", "memory", "socs", "targets.onnx.npu.refused", "tensors", "workers"),
    "linting": ("executing", "layouts", "npz", "parity", "targets", "workers", *DATA),
    "workers": ("errors", "memory"),
    "executing": ("errors", "sampler", "tensors", "targets.contract", "workers"),
    "gpu": ("errors", "executing", "tensors", "workers"),
    "memory": (),
    "orphans": (),
    "cluster": ("errors", "__init__"),
    "versions": ("targets",),
    # What a build that has nothing to do needs: without torch.
    "matrix": (
        "matrix",
        "names",
        "__init__",
        "cluster",
        "data",
        "files",
        "errors",
        "loras",
        "memory",
        "recipe",
        "recipe_file",
        "scheme",
        "toml_file",
        "versions",
        "visible",
        "workers",
    ),
    "matrix.check": ("artifact", "errors", "files", "manifest"),
    "matrix.place": ("artifact", "errors", "manifest", "matrix"),
    # Inside worker processes.
    "matrix.inside": ("build", "checkpoint", "parity", "pipeline", "swift", "matrix", *DATA),
    "matrix.depends": ("checkpoint.origin", "components", "names", "parity.chain", "recipe", "rewrites", "scheme"),
    "pages": (),
    "matrix.ground": ("checkpoint", "components", "matrix.keys", "notes", "recipe", "versions"),
    "matrix.planning": ("checkpoint", "matrix", "notes", "parity", "pipeline", "rewrites", "versions", *DATA),
    "inpainting": ("tensors",),
    "conditions": ("tensors",),
    "image_to_image": ("components.schedule", "errors", "inpainting", "sampler", "tensors"),
    "pictures": ("errors", "image_to_image", "inpainting", "tensors"),
    "denoising": ("inpainting", "sampler", "tensors"),
    "sampling": (
        "artifact",
        "denoising",
        "errors",
        "inpainting",
        "names",
        "quiet",
        "sampler",
        "tensors",
        "targets.contract",
    ),
    "parity.metrics": ("artifact", "parity.faults", "tensors"),
    "parity.hops": ("build", "executing", "layouts", "parity", "sampling", "targets", "workers", *DATA),
    "parity": (
        "parity",
        "checkpoint",
        "components",
        "conditions",
        "denoising",
        "executing",
        "gpu",
        "inpainting",
        "layouts",
        "rewrites",
        "sampling",
        "targets",
        "workers",
        "__init__",
        *DATA,
    ),
    "parity.npu": ("npu", "parity", "sampling", "socs", "targets.onnx.npu.refused", "workers", *DATA),
    "parity.adjusted": ("checkpoint", "parity", "quantization", "targets", *DATA),
    "parity.regression": ("linting", "parity", "sampling", "targets", *DATA),
    "parity.insight": ("checkpoint", "linting", "parity", "targets", *DATA),
    "layouts": ("errors", "recipe", "rewrites", "tensors"),
    "swift": ("swift", "artifact", "checkpoint", "components", "parity", "sampling", "targets", "workers", *DATA),
    "search": (
        "search",
        "checkpoint",
        "components",
        "data",
        "parity",
        "pipeline",
        "quantization",
        "rewrites",
        "sampling",
        "targets",
        "__init__",
        *DATA,
    ),
    "search.form": ("errors", "scheme"),
    "search.budget": ("errors",),
    "search.request": ("search.budget",),
    "search.choice": ("parity.metrics", "search.form"),
    "search.curve": ("search.choice",),
    "search.selection": ("search.choice", "search.curve"),
    "search.choose": ("errors", "search.budget", "search.choice", "search.curve", "search.selection"),
    "search.journal": ("errors", "search.choice"),
    "search.spread": ("cluster", "errors"),
    "search.measuring": ("errors", "search.choice", "search.journal", "search.spread"),
    "search.tradeoff": ("search.choice",),
    "search.write": ("errors", "recipe", "scheme", "search.form"),
    "joining": ("matrix.check", "parity", "pipeline", "workers", *DATA),
    "running": ("executing", "layouts", "parity.chain", "sampling", *DATA),
    "frames": ("checkpoint", "errors", "running"),
    "generation": (
        "denoising",
        "components",
        "checkpoint",
        "executing",
        "frames",
        "image_to_image",
        "inpainting",
        "parity",
        "running",
        "sampling",
        *DATA,
    ),
    "notes": ("checkpoint", "components", "parity", "sampler", "sampling", "__init__"),
    "build": ("checkpoint", "components", "layouts", "parity", "rewrites", "targets", *DATA),
    "pipeline": (
        "build",
        "checkpoint",
        "components",
        "layouts",
        "notes",
        "npu",
        "parity",
        "rewrites",
        "swift",
        "targets",
        "versions",
        "workers",
        "__init__",
        *DATA,
    ),
    "worker": ("worker", "errors", "orphans"),
    "doctor": (
        "doctor",
        "checkpoint",
        "components",
        "matrix.cache",
        "matrix.costs",
        "parity",
        "targets",
        "workers",
        "__init__",
        *DATA,
    ),
    "estimate": ("estimate", "targets", "workers", *DATA),
    "estimate.devices": ("errors", "targets.costs"),
    "estimate.roofline": ("errors", "estimate", "targets.costs"),
    "estimate.fit": ("estimate", "targets.costs", "tensors"),
    "estimate.ranking": ("estimate", "targets.costs"),
    "estimate.recorded": ("targets.costs",),
    "crosscheck": ("crosscheck", "parity", "targets", "workers", *DATA),
    "report": (
        "report",
        "crosscheck",
        "doctor.finding",
        "estimate",
        "pictures",
        "artifact",
        "manifest",
        "parity",
        "inspection",
        "joining",
        "components",
        "matrix",
        "sampler",
        "sampling",
        "search.tradeoff",
        "targets",
        "__init__",
    ),
    "cli": ("cli", "errors", "names", "socs", "visible", "__init__"),
    "__init__": ("pipeline", "parity", "recipe_file"),
    "__main__": ("cli",),
}
ONLY_AT_THE_TOP = ("cli", "worker", "arch", "targets.coreml", "__init__")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def rule_for(name: str) -> str:
    matches = [prefix for prefix in ALLOWED if name == prefix or name.startswith(prefix + ".")]
    assert matches, f"{name} is not in the import table"
    return max(matches, key=len)


def own_imports(path: Path, top_only: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "md_export":
            inner = node.module.removeprefix("md_export").lstrip(".")
            submodules = [a.name for a in node.names if (PACKAGE / inner.replace(".", "/") / f"{a.name}.py").exists()]
            packages = [
                a.name for a in node.names if (PACKAGE / inner.replace(".", "/") / a.name / "__init__.py").exists()
            ]
            found |= {f"{inner}.{name}".lstrip(".") for name in submodules + packages} or {inner or "__init__"}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("md_export.") for a in node.names if a.name.startswith("md_export")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_import_table(path: Path) -> None:
    if "_data" in path.parts:
        pytest.skip("data, not code")
    name = module_name(path)
    rule = rule_for(name)
    for imported in own_imports(path, top_only=rule in ONLY_AT_THE_TOP):
        allowed = any(imported == item or imported.startswith(item + ".") for item in ALLOWED[rule])
        assert allowed, f"{name} may not import {imported}; its row allows {', '.join(ALLOWED[rule]) or 'nothing'}"


def test_the_table_can_fail(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("from md_export.pipeline import export\nfrom md_export.targets import onnx\n")
    assert own_imports(source, top_only=True) == {"pipeline", "targets.onnx"}


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_imports_nothing_heavy(argument: str) -> None:
    code = (
        f"import sys\nsys.argv = ['md-export', {argument!r}]\nfrom md_export.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        "inspect",
        "init",
        "unpack",
        "golden",
        "coreml",
        "tflite",
        "onnx",
        "coreai",
        "run",
        "verify",
        "audit",
        "crosscheck",
        "estimate",
        "lint",
        "generate",
        "report",
        "build",
        "cache",
        "doctor",
        "adapt",
    ],
)
def test_help_of_each_command_is_light(command: str) -> None:
    code = (
        "import sys\nfrom md_export.cli import cli\n"
        f"cli.main([{command!r}, '--help'], standalone_mode=False)\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in result.stdout


def test_public_names() -> None:
    names = [name for name in dir(md_export) if not name.startswith("_")]
    assert names == ["export", "load_recipe", "open_checkpoint", "pictures_of_artifacts", "verify"]
    assert all(callable(getattr(md_export, name)) for name in names)
    with pytest.raises(AttributeError, match="public names"):
        md_export.lower  # noqa: B018


def test_commands_are_the_targets() -> None:
    assert tuple(TARGET_TITLES) == tuple(TARGETS)


def test_every_error_is_in_the_tree() -> None:
    assert errors.__doc__ is not None
    for name in vars(errors):
        if isinstance(getattr(errors, name), type) and name != "MdExportError":
            assert name in errors.__doc__


@pytest.mark.parametrize("target", TARGETS)
def test_targets_keep_the_contract(target: str) -> None:
    installed(target)
    files = {"lower": "lower", "quantize": "quantize", "save": "save", "describe": "describe", "load": "run"}
    files |= {"steps": "inside", "values": "inside", "edit": "edit", "store_as_float": "edit"}
    for function, file in files.items():
        assert callable(getattr(importlib.import_module(f"md_export.targets.{target}.{file}"), function))
