"""The workflow, the composite action and its shell: linted as GitHub would read them, and run with a stand-in tool."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KIT = ROOT / ".github"
ACTION = Path("actions") / "md-export"
PROGRAMS = Path(sys.executable).parent


def lint_workflows(kit: Path) -> str:
    """What actionlint, with shellcheck, finds in the workflows of a ``.github`` folder; empty where all is well."""
    (kit.parent / ".git").mkdir(exist_ok=True)
    command = [str(PROGRAMS / "actionlint"), "-oneline", f"-shellcheck={PROGRAMS / 'shellcheck'}", "-pyflakes="]
    result = subprocess.run(command, cwd=kit.parent, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stderr
    return result.stdout


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return Path(shutil.copytree(KIT, tmp_path / "repository" / ".github"))


def replace_once(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_the_workflow_is_clean(kit: Path) -> None:
    assert lint_workflows(kit) == ""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [("target: ${{ matrix.target }}", "targets: x", "targets"), ("matrix.precision", "matrix.precise", "precise")],
)
def test_a_mistake_in_the_workflow_is_found(kit: Path, old: str, new: str, complaint: str) -> None:
    replace_once(kit / "workflows" / "parity.yml", old, new)
    assert complaint in lint_workflows(kit)


def as_workflow(action: Path, workflow: Path) -> None:
    """The steps of a composite action as a workflow's: actionlint reads those of an action only by its surface."""
    text = action.read_text()
    surface, steps = text.split("\n  steps:\n")
    inputs = re.findall(r"^  ([\w-]+):$", surface.split("\noutputs:")[0], re.MULTILINE)
    declared = "".join(f"      {name}: {{ type: string }}\n" for name in inputs)
    indented = "".join(f"  {line}\n" if line else "\n" for line in steps.splitlines())
    workflow.write_text(
        f"on:\n  workflow_call:\n    inputs:\n{declared}jobs:\n  x:\n    runs-on: ubuntu-latest\n    steps:\n{indented}"
    )


def test_the_steps_of_the_action_are_clean(kit: Path) -> None:
    as_workflow(kit / ACTION / "action.yml", kit / "workflows" / "steps.yml")
    assert lint_workflows(kit) == ""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("steps.names.outputs.name }}", "steps.nams.outputs.name }}", "nams"),
        ("inputs.checkpoint", "inputs.model", "model"),
        ("restore-keys", "restore_keys", "restore_keys"),
        ('run: bash "$GITHUB_ACTION_PATH/steps.sh" keep', "run: rm -rf $OUTPUT/*", "SC2086"),
    ],
)
def test_a_mistake_in_the_action_is_found(kit: Path, old: str, new: str, complaint: str) -> None:
    replace_once(kit / ACTION / "action.yml", old, new)
    as_workflow(kit / ACTION / "action.yml", kit / "workflows" / "steps.yml")
    assert complaint in lint_workflows(kit)


def test_the_shell_is_clean() -> None:
    command = [str(PROGRAMS / "shellcheck"), "--enable=quote-safe-variables", str(KIT / ACTION / "steps.sh")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_nothing_asks_for_secrets_or_may_write() -> None:
    workflow, action = (KIT / "workflows" / "parity.yml").read_text(), (KIT / ACTION / "action.yml").read_text()
    assert "permissions:\n  contents: read\n" in workflow
    assert "write" not in workflow
    assert "secrets" not in workflow + action
    used = re.findall(r"uses: (\S+)", workflow + action)
    assert len(used) >= 6
    assert all(re.fullmatch(r"actions/[\w/-]+@v\d+|\./\.github/actions/md-export", name) for name in used)
    run_lines = re.findall(r"run: (.*)", action)
    assert run_lines
    assert not any("${{" in line for line in run_lines), "an input would be read as shell"


# Stands in for the tool: notes what it was asked, and exits as STATUS_<command> says.
STAND_IN = """#!/usr/bin/env bash
echo "$@" >>"$ASKED"
name="STATUS_$1"
exit "${!name:-0}"
"""


def step(tmp_path: Path, name: str, values: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    tool = tmp_path / "bin" / "md-export"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(STAND_IN)
    tool.chmod(0o755)
    files = {key: str(tmp_path / key) for key in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "ASKED")}
    github = {"GITHUB_REPOSITORY": "me/mine", "GITHUB_WORKFLOW_REF": "me/mine/.github/workflows/w.yml@refs/heads/main"}
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(KIT / ACTION / "steps.sh"), name]
    env = {"PATH": path, "OUTPUT": "out", **files, **github, **values}
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)


def outputs(tmp_path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (tmp_path / "GITHUB_OUTPUT").read_text().splitlines())


def test_names(tmp_path: Path) -> None:
    given = {"TARGET": "onnx", "RECIPE": "", "BRANCH": "main"}
    assert step(tmp_path, "names", given).returncode == 0
    found = outputs(tmp_path)
    assert (found["recipe"], found["name"]) == ("onnx-fp16", "onnx-fp16")
    assert found["annotate"] == ".github/workflows/w.yml"
    assert found["baseline-key"] == "md-export-baseline-onnx-fp16-main"
    (tmp_path / "my own.toml").touch()
    step(tmp_path, "names", {**given, "RECIPE": "my own.toml"})
    assert (outputs(tmp_path)["name"], outputs(tmp_path)["annotate"]) == ("my own", "my own.toml")


@pytest.mark.parametrize(
    ("status", "code", "folder"), [("0", 0, "out/n"), ("3", 0, "out/n.rejected"), ("1", 1, None), ("2", 2, None)]
)
def test_export_goes_on_with_what_was_rejected(tmp_path: Path, status: str, code: int, folder: str | None) -> None:
    given = {
        "TARGET": "onnx",
        "RECIPE": "r.toml",
        "CHECKPOINT": "$(touch owned); x",
        "NAME": "n",
        "STATUS_onnx": status,
    }
    assert step(tmp_path, "export", given).returncode == code
    assert (tmp_path / "ASKED").read_text() == "onnx $(touch owned); x --recipe r.toml --output out/n\n"
    assert not (tmp_path / "owned").exists()
    if folder:
        assert outputs(tmp_path)["folder"] == folder
    else:
        assert not (tmp_path / "GITHUB_OUTPUT").exists()


@pytest.mark.parametrize(
    ("status", "code", "said"), [("0", 0, ""), ("3", 3, ""), ("1", 0, "::warning"), ("2", 0, "::w")]
)
def test_compare_fails_past_the_budget_only(tmp_path: Path, status: str, code: int, said: str) -> None:
    given = {"BASELINE": "", "FOLDER": "out/n", "ANNOTATE": "r.toml", "STATUS_compare": status}
    nothing = step(tmp_path, "compare", given)
    assert (nothing.returncode, nothing.stdout[:8]) == (0, "::notice")
    assert not (tmp_path / "ASKED").exists()
    (tmp_path / "out" / "baseline").mkdir(parents=True)
    result = step(tmp_path, "compare", given)
    assert result.returncode == code
    assert result.stdout.startswith(said)
    assert bool(result.stdout) == bool(said)
    assert (tmp_path / "ASKED").read_text().startswith("compare out/baseline out/n --junit out/compare.xml")


def test_report_fails_as_the_tool_does(tmp_path: Path) -> None:
    given = {"FOLDER": "out/n.rejected", "CHECKPOINT": "", "ANNOTATE": "r.toml", "STATUS_report": "3"}
    assert step(tmp_path, "report", given).returncode == 3
    step(tmp_path, "report", {**given, "CHECKPOINT": "my model"})
    without, explained = (tmp_path / "ASKED").read_text().splitlines()
    assert without.startswith("report out/n.rejected --output out/report.html")
    assert without.endswith("--annotate r.toml")
    assert explained.startswith("report out/n.rejected --checkpoint my model --output")


def test_summary_and_baseline(tmp_path: Path) -> None:
    assert step(tmp_path, "summary", {}).returncode == 0
    assert (tmp_path / "GITHUB_STEP_SUMMARY").read_text() == ""
    (tmp_path / "out" / "report.md").write_text("verified\n")
    step(tmp_path, "summary", {})
    assert (tmp_path / "GITHUB_STEP_SUMMARY").read_text() == "verified\n"
    (tmp_path / "out" / "n").mkdir()
    (tmp_path / "out" / "n" / "manifest.json").touch()
    (tmp_path / "out" / "baseline").mkdir()
    assert step(tmp_path, "keep", {"FOLDER": "out/n"}).returncode == 0
    assert [item.name for item in (tmp_path / "out" / "baseline").iterdir()] == ["manifest.json"]
