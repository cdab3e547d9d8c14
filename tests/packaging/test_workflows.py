"""Workflows run what a clone runs, each test once, with no right or secret that they do not need."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
NAMES = ["docs", "nightly", "parity", "release", "tests"]
# Rights beyond reading, by job.
RIGHTS = {
    ("docs", "publish"): {"pages": "write", "id-token": "write"},
    ("release", "publish"): {"id-token": "write"},
}
ACTIONS = re.compile(r"actions/[\w/-]+@v\d+|pypa/gh-action-pypi-publish@release/v1|\./\.github/actions/md-export")


def workflow(name: str) -> dict[str, Any]:
    # YAML 1.1 reads the key `on` as True.
    found: dict[str, Any] = yaml.safe_load((WORKFLOWS / f"{name}.yml").read_text(encoding="utf-8"))
    return found


def steps(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for job, content in workflow(name)["jobs"].items():
        yield from ((job, step) for step in content["steps"])


def commands(*targets: str) -> list[str]:
    """What make runs for some targets where .venv is there."""
    argv = ["make", "--dry-run", "--no-print-directory", "--old-file", ".venv/.ready", *targets]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def areas() -> list[str]:
    return [str(area) for area in workflow("tests")["jobs"]["tests"]["strategy"]["matrix"]["area"]]


def test_every_workflow_is_known() -> None:
    assert sorted(path.stem for path in WORKFLOWS.iterdir()) == NAMES


def test_a_clone_and_github_run_the_same_commands() -> None:
    """``.ci/run`` is lint and all tests; GitHub runs lint, and ``.ci/run`` for the tests of each area."""
    runs = {(job, step["run"]) for job, step in steps("tests") if "run" in step}
    assert {("lint", "make lint"), ("tests", '.ci/run tests AREA="$AREA"')} <= runs
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert script[-1] == 'make "${@:-test}"'
    assert [line for line in script if line.startswith("make ")] == [
        "make gpu-driver",
        "make npu-simulator",
        script[-1],
    ]
    assert commands("test") == [*commands("lint"), *commands("tests")]
    assert len(commands("lint")) > 3 and len(commands("tests")) == 1
    assert commands("tests", "AREA=models spec") == [f"{commands('tests')[0].rstrip()} tests/models tests/spec"]


def covered(areas: Sequence[str]) -> list[str]:
    """Test files that some areas run, one entry for each time."""
    paths = [path for area in areas for name in area.split() for path in (ROOT / "tests").glob(name)]
    files = [file for path in paths for file in (path.rglob("test_*.py") if path.is_dir() else [path])]
    return sorted(file.relative_to(ROOT).as_posix() for file in files)


def test_each_test_is_in_exactly_one_area() -> None:
    """A new folder of tests goes into an area of ``.github/workflows/tests.yml``."""
    everything = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "tests").rglob("test_*.py"))
    assert covered(areas()) == everything
    assert covered(areas()[1:]) != everything


@pytest.mark.parametrize("name", NAMES)
def test_nothing_asks_for_more_than_it_needs(name: str) -> None:
    content = workflow(name)
    assert content["permissions"] == {"contents": "read"}
    for job, body in content["jobs"].items():
        assert body.get("permissions", {}) == RIGHTS.get((name, job), {})
        assert body["timeout-minutes"] <= 360
    assert "secrets" not in (WORKFLOWS / f"{name}.yml").read_text(encoding="utf-8")
    for _, step in steps(name):
        assert ACTIONS.fullmatch(step.get("uses", "actions/checkout@v5"))
        assert "${{" not in step.get("run", ""), "an input would be read as shell"
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("name", ["tests", "docs", "release", "nightly"])
def test_every_target_and_script_that_a_workflow_runs_exists(name: str) -> None:
    lines = [step["run"] for _, step in steps(name) if "run" in step]
    scripts = {line.split()[0] for line in lines if line.startswith(".ci/")}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)
    targets = {line.split()[1] for line in lines if line.startswith("make ")}
    assert targets
    for target in targets:
        commands(target)


def test_issue_templates_ask_for_doctor() -> None:
    bug = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8"))
    fields = {field["id"]: field for field in bug["body"]}
    assert "`md-export doctor`" in fields["doctor"]["attributes"]["description"]
    assert fields["doctor"]["validations"]["required"] is True


def test_dependabot_and_hooks_are_read() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text(encoding="utf-8"))["updates"]
    assert {one["package-ecosystem"] for one in updates} == {"pip", "github-actions"}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert all((ROOT / hook["entry"].split()[0]).exists() for hook in hooks)


def test_changes_become_a_changelog(tmp_path: Path) -> None:
    """A change of each kind, under its heading; a kind that is none is refused."""
    kinds = re.findall(r"`(\w+)`", (ROOT / "changes/README.md").read_text().split("The kinds are")[1].split(". A ")[0])
    (tmp_path / "changes").mkdir()
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    for kind in kinds:
        (tmp_path / "changes" / f"+x.{kind}.md").write_text(f"A change of {kind}.\n")
    argv = [str(Path(sys.executable).with_name("towncrier")), "build", "--draft", "--version", "9.9.9"]
    argv += ["--date", "2000-01-01", "--dir", str(tmp_path), "--config", str(tmp_path / "pyproject.toml")]
    drafted = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "## 9.9.9 (2000-01-01)" in drafted
    assert [line for line in drafted.splitlines() if line.startswith("- ")] == [
        f"- A change of {one}." for one in kinds
    ]
    assert all(name in drafted for name in ("### What you must change", "### Fixed"))
