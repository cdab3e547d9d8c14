"""No import points up, and asking for help loads nothing heavy."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import md_export
from md_export import api, errors
from md_export.cli import cli
from md_export.cli.exports import REWRITE_NAMES, TARGET_TITLES
from md_export.cli.paths import PATH
from md_export.targets import TARGETS
from md_export.targets.contract import Saved, Target
from support import installed

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

CONTRACTS = Path(__file__).parent.parent / "pyproject.toml"


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    argv = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", str(config)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_every_arrow_points_down(tmp_path: Path) -> None:
    assert lint_imports(CONTRACTS).returncode == 0
    # The same layers upside down must be refused.
    text = CONTRACTS.read_text(encoding="utf-8")
    head, layers, tail = re.split(r"(?<=layers = \[\n)(.*?)(?=\]\n)", text, maxsplit=1, flags=re.DOTALL)
    upside_down = tmp_path / "pyproject.toml"
    upside_down.write_text(head + "".join(reversed(layers.splitlines(keepends=True))) + tail, encoding="utf-8")
    found = lint_imports(upside_down)
    assert found.returncode == 1
    assert "BROKEN" in found.stdout


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
        "device-test",
        "device-report",
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


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_a_worker_that_runs_an_artifact_needs_no_torch(target: str) -> None:
    """Importing it takes longer than running a small artifact; the runtime of ML programs computes with it."""
    code = f"import sys, md_export.targets.execution, md_export.targets.{target}.saved; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


WRONG_PATHS = """
onnx none -o new; tflite none -o new; onnx -o .; onnx --golden none -o new; coreml --lora none.safetensors -o new
onnx . -o new; join none -o new; split none; build onnx-fp16 --checkpoint none -o new
search none --target onnx --budget snr=20 -o new; search --target onnx --budget snr=20 -o .
verify none; audit none; report none -o page.html; report . -o none/page.html; compare none none
manifest check none; manifest seal none; run none.onnx --inputs none -o y.npz; attribute none.onnx; crosscheck none none
estimate none --device iphone15pro; lint none; device-test none -o new; device-report none none
inspect none; inspect none.onnx; init . --arch nano; golden none --prompt x -o new; golden . --prompts none -o new
adapt none --adapter . -o new; unpack none.safetensors -o new; doctor --checkpoint none onnx-fp16
generate x --checkpoint none -o x.png; generate x --artifacts none -o x.png; generate x -o none/x.png
generate x --init-image none -o x.png
"""
WRONG_RECIPES = """
onnx --recipe none -o new; onnx --recipe typo.toml -o new; build none -o new; build typo.toml -o new
search --target onnx --budget snr=20 --recipe typo.toml -o new; doctor typo.toml
"""
ANSWERED = """
import sys
import click
from md_export.cli import cli, paths
from md_export.errors import MdExportError
{before}
for line in {commands!r}.replace(";", "\\n").split("\\n"):
    if line.strip():
        try:
            cli.main(line.split(), standalone_mode=False)
            print("accepted:", line)
        except (MdExportError, click.UsageError):
            for name in {heavy!r}:
                if name in sys.modules:
                    print(name, "was imported for:", line)
"""


def answers(folder: Path, commands: str, heavy: tuple[str, ...], before: str = "") -> str:
    """What is wrong with the answers to wrong commands, one after another in one process."""
    (folder / "typo.toml").write_text('name = "x"\ntarget = "onnx"\nweight = "int8"\n')
    code = ANSWERED.format(commands=commands, heavy=heavy, before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert {path.name for path in folder.iterdir()} == {"typo.toml"}
    return done.stdout


def test_a_wrong_path_is_answered_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    assert answers(tmp_path, WRONG_PATHS, HEAVY) == ""


def test_a_wrong_recipe_is_answered_before_torch_is_imported(tmp_path: Path) -> None:
    assert answers(tmp_path, WRONG_RECIPES, tuple(name for name in HEAVY if name != "pydantic")) == ""


def test_without_the_check_an_answer_imports_something_heavy(tmp_path: Path) -> None:
    unchecked = "paths._Checked.convert = click.Path.convert"
    assert "numpy was imported for: run none.onnx" in answers(
        tmp_path, "run none.onnx --inputs typo.toml -o y.npz", HEAVY, unchecked
    )


def test_all_paths_on_the_command_line_are_checked() -> None:
    """But for those that mean something else, too, or need not exist."""
    found = {
        f"{command.name} {option.name}"
        for command in commands_in(cli)
        for option in command.params
        if option.type is PATH and option.name not in ("cache", "recipe_file")
    }
    assert found == {"build recipes", "build output", "search journal", "doctor recipe", "show name", "new name"}


def commands_in(group: click.Group) -> list[click.Command]:
    commands = list(group.commands.values())
    return commands + [one for item in commands if isinstance(item, click.Group) for one in commands_in(item)]


def test_the_process_of_an_export_needs_no_torch(tmp_path: Path) -> None:
    """Workers do all that does, the planning too."""
    (tmp_path / "none" / "unet").mkdir(parents=True)
    code = (
        "import sys\nfrom md_export.cli import cli\nfrom md_export.errors import CheckpointError\n"
        f"arguments = ['onnx', {str(tmp_path / 'none')!r}, '--no-cache', '-o', {str(tmp_path / 'out')!r}]\n"
        "try:\n    cli.main(arguments, standalone_mode=False)\n"
        "except CheckpointError:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# What a command asks for by name before it imports these: ``verify --runtime`` and a report's page.
ASKED_FOR = ["md_export.parity.runtimes", "md_export.report.page"]
WITHOUT_EXTRAS = """
import importlib, pkgutil, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {extras}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
import md_export
for module in pkgutil.walk_packages(md_export.__path__, "md_export."):
    if not module.name.startswith({own}):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError:
            print(module.name)
"""


@pytest.mark.seen("an environment with the extra of one target only", "a missing extra is named in a line")
def test_nothing_but_a_target_needs_its_extra() -> None:
    """A target's own folder may import its vendor's libraries, and nobody else may import that folder at once."""
    extras = {
        *("coremltools", "litert_torch", "ai_edge_litert", "ai_edge_quantizer", "flatbuffers", "tensorflow"),
        *("onnx", "onnx_ir", "onnxruntime", "onnxscript", "ml_dtypes", "coreai", "coreai_torch"),
        *("jinja2", "matplotlib", "diffusers", "distributed", "fsspec"),
    }
    own = tuple(f"md_export.targets.{name}." for name in TARGETS)
    code = WITHOUT_EXTRAS.format(extras=extras, own=own)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ASKED_FOR


def test_a_page_asks_for_its_libraries_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    (tmp_path / "manifest.json").touch()
    ended = CliRunner().invoke(cli, ["report", str(tmp_path), "-o", str(tmp_path / "page.html")])
    assert isinstance(ended.exception, errors.MissingExtraError)
    assert str(ended.exception) == "a page needs jinja2, which is not installed: pip install 'md-export[report]'"


def test_public_names() -> None:
    names = [name for name in dir(md_export) if not name.startswith("_")]
    assert names == sorted(md_export.__all__, key=str) == sorted(api.__all__, key=str)
    assert names == [
        *("CheckResult", "Export", "Runner", "audit", "export", "generate", "load_recipe", "nano_checkpoint"),
        *("open_checkpoint", "open_export", "verify"),
    ]
    assert all(getattr(md_export, name) is getattr(api, name) and getattr(api, name).__doc__ for name in names)
    with pytest.raises(AttributeError, match="public names"):
        md_export.lower  # type: ignore[attr-defined]  # noqa: B018


def test_commands_are_the_targets() -> None:
    assert tuple(TARGET_TITLES) == tuple(TARGETS)


def test_names_of_rewrites_on_the_command_line() -> None:
    from md_export.rewrites import REWRITES

    assert tuple(REWRITES) == REWRITE_NAMES


def test_every_error_is_in_the_tree() -> None:
    assert errors.__doc__ is not None
    for name in vars(errors):
        if isinstance(getattr(errors, name), type) and name != "MdExportError":
            assert name in errors.__doc__


@pytest.mark.parametrize("target", TARGETS)
def test_targets_keep_the_contract(target: str) -> None:
    # mypy compares the signatures; here, every import inside a method must exist.
    installed(target)
    kind = type(TARGETS[target])
    assert TARGETS[target].name == target and kind.__mro__[1] is Target
    tree = ast.parse(Path(sys.modules[kind.__module__].__file__ or "").read_text(encoding="utf-8"))
    methods = [node for part in tree.body if isinstance(part, ast.ClassDef) for node in part.body]
    imports = [node for method in methods for node in ast.walk(method) if isinstance(node, ast.ImportFrom)]
    assert len(imports) >= 5
    saved = TARGETS[target].saved()
    assert all(callable(getattr(saved, name)) for name in vars(Saved) if not name.startswith("_"))
    for line in imports:
        found = [getattr(importlib.import_module(line.module or ""), name.name) for name in line.names]
        assert found == [saved] or all(map(callable, found))
