"""What ``md-export doctor`` finds; each finding has a machine on which it must turn out otherwise."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from md_export.cli import cli
from md_export.diagnose.doctor import examine
from md_export.diagnose.doctor import findings as machine
from md_export.diagnose.doctor.examine import (
    LEAST_SNR_DB,
    CanaryResult,
    canary_finding,
    canary_judged,
    gpu_finding,
    run_canary,
)
from md_export.diagnose.doctor.findings import (
    Diagnosis,
    Finding,
    Memory,
    Need,
    Place,
    Supported,
    _tested,
    disk_findings,
    group_room,
    memory_finding,
    need_of,
    supported,
    version_findings,
)
from md_export.engine.costs import artifact_cost
from md_export.errors import ConversionError, MdExportError, RuntimeFault
from md_export.report.tables import doctor_text, without_names
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint
from md_export.spec.tensors import Array, Arrays
from md_export.system.isolation import Ended
from md_export.targets import TARGETS
from md_export.targets.tflite.gpu import engine as driver
from support import installed

ROOT = Path(__file__).parents[2]
GB = 10**9
NEED = Need(memory=5 * GB, step="coreml unet", out=2 * GB, temp=3 * GB, cache=GB)


# Versions


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def test_the_rows_are_those_of_the_project_file() -> None:
    """Metadata repeats an extra's lines with a marker, those that another extra takes over too."""
    groups = {None: project()["dependencies"], **project()["optional-dependencies"]}
    lines = {(Requirement(line), extra) for extra, group in groups.items() for line in group}
    wanted = {(line.name, str(line.specifier), extra) for line, extra in lines if line.name != "md-export"}
    marked = [
        f"{line}; extra == '{extra}'" if extra else str(line) for line, extra in lines if line.name != "md-export"
    ]
    again = [f"{line}; extra == 'all'" for line, extra in lines if extra in ("coreml", "onnx")]
    rows = supported([*again, *marked], [extra for extra in groups if extra not in (None, "all")])
    table = {(row.name, str(Requirement(row.name + row.allowed).specifier), row.extra) for row in rows}
    shared = {row for row in wanted if row[0] in ("coremltools", "protobuf")}
    assert table - shared == wanted - shared
    assert sorted(name for name, _, _ in table & shared) == ["coremltools", "protobuf"]


def test_every_requirement_has_a_tested_version() -> None:
    groups = [project()["dependencies"], *project()["optional-dependencies"].values()]
    names = {Requirement(line).name for group in groups for line in group}
    assert {"python", *names} - set(_tested()) == {"md-export", "tensorflow"}
    assert {name for target in TARGETS.values() for name in target.distributions} <= set(_tested())


TABLE = (Supported("numpy", ">=2.3,<2.4", "2.3.5"), Supported("coremltools", ">=9.0,<9.1", "9.0", "coreml"))


@pytest.mark.parametrize(
    ("numpy", "coremltools", "verdicts", "said"),
    [
        ("2.3.5", "9.0", ("ok", "ok"), ""),
        ("2.3.5+local", "9.0", ("ok", "ok"), ""),
        ("2.3.1", "9.0", ("note", "ok"), "2.3.1, last tested with 2.3.5"),
        ("1.26.4", "9.0", ("broken", "ok"), "pip install 'numpy>=2.3,<2.4'"),
        ("2.4.0", "9.0", ("broken", "ok"), "2.4.0, outside >=2.3,<2.4"),
        ("what", "9.0", ("broken", "ok"), "what, outside"),
        (None, "9.0", ("broken", "ok"), "pip install 'numpy>=2.3,<2.4'"),
        ("2.3.5", "8.3.0", ("ok", "broken"), "pip install 'coremltools>=9.0,<9.1'"),
        ("2.3.5", None, ("ok", "not installed"), "pip install 'md-export[coreml]'"),
    ],
)
def test_versions(
    monkeypatch: pytest.MonkeyPatch, numpy: str | None, coremltools: str | None, verdicts: tuple[str, ...], said: str
) -> None:
    def version(name: str) -> str:
        found = {"numpy": numpy, "coremltools": coremltools}[name]
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    python, *findings = version_findings(TABLE)
    assert python.verdict in ("ok", "note")
    assert tuple(item.verdict for item in findings) == verdicts
    assert said in " ".join(f"{item.found} {item.advice}" for item in findings)


def test_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    (found,) = version_findings()
    assert (found.what, found.verdict, found.advice) == ("md-export", "broken", "pip install md-export")


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.10.9")
    python = version_findings(())[0]
    assert (python.verdict, python.advice) == ("broken", "install Python >=3.11")


# Memory and disk


@pytest.mark.parametrize(
    ("memory", "need", "verdict"),
    [
        (Memory(6 * GB, None), NEED, "ok"),
        (Memory(6 * GB, 4 * GB), NEED, "broken"),
        (Memory(4 * GB, 9 * GB), NEED, "broken"),
        (Memory(4 * GB, None), None, "ok"),
        (Memory(GB, None), None, "broken"),
    ],
)
def test_memory(memory: Memory, need: Need | None, verdict: str) -> None:
    finding = memory_finding(memory, need)
    assert finding.verdict == verdict
    assert bool(finding.advice) == (verdict == "broken")


@pytest.mark.parametrize(
    ("disks", "free", "verdicts"),
    [
        ((1, 2, 3), (2, 3, 1), ("ok", "ok", "ok")),
        ((1, 2, 3), (1, 3, 1), ("broken", "ok", "ok")),
        ((1, 1, 3), (4, 4, 1), ("broken", "broken", "ok")),
        ((1, 1, 1), (6, 6, 6), ("ok", "ok", "ok")),
        ((1, 2, 3), (2, 2, 0), ("ok", "broken", "broken")),
    ],
)
def test_disk(disks: tuple[int, ...], free: tuple[int, ...], verdicts: tuple[str, ...]) -> None:
    names = zip("abc", free, disks, strict=True)
    places = [Place(name, Path(f"/{name}"), size * GB, disk) for name, size, disk in names]
    assert tuple(item.verdict for item in disk_findings(places, NEED)) == verdicts


def groups(root: Path, lines: str, folders: dict[str, dict[str, object]]) -> int | None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for folder, files in folders.items():
        (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (root / "sys/fs/cgroup" / folder / name).write_text(f"{content}\n")
    return group_room(root)


def second(most: object, used: int = 500, cached: int = 100) -> dict[str, object]:
    return {"memory.max": most, "memory.current": used, "memory.stat": f"anon 7\ninactive_file {cached}"}


def first(most: int) -> dict[str, object]:
    """Of control groups of version 1."""
    return {"memory.limit_in_bytes": most, "memory.usage_in_bytes": 400, "memory.stat": "total_inactive_file 1"}


@pytest.mark.parametrize(
    ("lines", "folders", "room"),
    [
        ("0::/a/b", {"a/b": second("max"), "a": second(2000)}, 1600),
        ("0::/a/b", {"a/b": second(900), "a": second(2000)}, 500),
        ("0::/", {".": second("max")}, None),
        ("0::/gone", {}, None),
        ("", {}, None),
        ("4:cpu:/x\n5:memory:/x", {"memory/x": first(900)}, 501),
        ("5:memory:/x", {"memory/x": first((1 << 63) - 4096)}, None),
    ],
    ids=["parent limits", "own limit", "no limit", "no files", "no groups", "version 1", "version 1 without"],
)
def test_limits_of_containers(
    tmp_path: Path, lines: str, folders: dict[str, dict[str, object]], room: int | None
) -> None:
    assert groups(tmp_path, lines, folders) == room


def test_needs_are_those_that_builds_predict(nano: Path) -> None:
    recipe = load_recipe(builtin_recipe("tflite", "fp16"))
    need = need_of(recipe, nano)
    alone = need_of(recipe.narrowed(("vae_decoder",)), nano)
    assert need.memory >= artifact_cost("tflite", "unet", recipe.schemes["unet"], 4 * 2_000_000).peak_bytes
    assert need.out == 3 * need.cache > alone.out > 0
    assert need.temp >= alone.temp > 0


# The GPU driver


def test_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in driver.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(driver, "DEBIAN", tmp_path)
    missing = gpu_finding()
    assert missing.verdict == "not installed"
    assert "make gpu-driver" in missing.advice
    driver.cache_folder().mkdir(parents=True)
    (driver.cache_folder() / driver.MANIFEST).write_text("{}")
    assert gpu_finding().verdict == "ok"


# Canaries


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_canary(name: str) -> None:
    installed(name)
    finding = canary_finding(TARGETS[name])
    assert finding.verdict == "ok", finding
    assert "dB SNR" in finding.found


class Wrong:
    """A target whose runtime answers otherwise."""

    def __init__(self, change: Callable[[Array], Array]) -> None:
        self._target = TARGETS["onnx"].open()
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def load(self, path: Path) -> Any:
        runner = self._target.load(path)

        class Runner:
            def run(_, given: Arrays) -> dict[str, Array]:  # noqa: N805
                return {name: self._change(value) for name, value in runner.run(given).items()}

        return Runner()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda made: made, None),
        (lambda made: made * np.float32(1.001), "its results are wrong"),
        (lambda made: made[:, ::-1], "its results are wrong"),
        (lambda made: made + np.float32("nan"), "NaN"),
        (lambda made: made[:, :1], "shape"),
    ],
    ids=["right", "scaled", "reversed", "nan", "shape"],
)
def test_a_runtime_with_wrong_numbers_is_broken(change: Callable[[Array], Array], said: str | None) -> None:
    target: Any = Wrong(change)
    flight = run_canary(target, ".onnx")
    finding = canary_judged("onnx", Ended(flight, None, "", False, ""), 1.0)
    assert finding.verdict == ("ok" if said is None else "broken")
    assert said is None or said in finding.found


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (Ended(None, None, "the process crashed (SIGSEGV)", False, "first\nlast words\n"), "(SIGSEGV): last words"),
        (Ended(None, None, "the process was stopped at the time limit of 120 s", True, ""), "time limit"),
        (Ended(None, ConversionError("no such op"), "", False, ""), "no such op"),
        (Ended(CanaryResult(LEAST_SNR_DB - 1), None, "", False, ""), "89 dB"),
        (Ended(CanaryResult(float("nan")), None, "", False, ""), "are wrong"),
    ],
)
def test_a_canary_that_dies_is_broken(ended: Ended[CanaryResult], said: str) -> None:
    finding = canary_judged("onnx", ended, 1.0)
    assert finding.verdict == "broken"
    assert said in finding.found
    assert finding.advice


def test_a_target_that_is_not_installed_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    finding = canary_finding(TARGETS["coreml"])
    assert finding.verdict == "not installed"
    assert "md-export[coreml]" in finding.advice


# The report


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/ada/.cache and /home/adam/x", "~/.cache and /home/adam/x"),
        ("/data/ada/tmp", "/data/USER/tmp"),
        ("/home/ada", "~"),
        ("/opt/canada/ada.txt", "/opt/canada/ada.txt"),
    ],
)
def test_no_names_in_bug_reports(text: str, told: str) -> None:
    assert without_names(text, Path("/home/ada"), "ada") == told


def test_the_text_says_what_the_table_does() -> None:
    found = Diagnosis("1", "Linux", (Finding("disk", "cache", "broken", "/home/ada/c: 0.1 GB free", "free some"),))
    text = doctor_text(found, Path("/home/ada"), "ada")
    assert text.splitlines()[:2] == ["md-export 1", "Linux"]
    assert text.splitlines()[2].split() == [
        "disk",
        "cache",
        "broken",
        "~/c:",
        "0.1",
        "GB",
        "free",
        "->",
        "free",
        "some",
    ]


def test_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "memory_here", lambda: Memory(6 * GB, None))
    good = CliRunner().invoke(cli, ["doctor", "--no-canary", "coreml-fp16"])
    assert good.exit_code == 0, good.output
    assert "coreml unet takes about" in good.output or "verifying takes about" in good.output
    assert "canary" not in good.output
    asked = CliRunner().invoke(cli, ["doctor", "--no-canary", "--json", "-"])
    assert {item["area"] for item in json.loads(asked.stdout)["findings"]} == {"versions", "memory", "disk", "gpu"}


def test_command_on_a_machine_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    places = tuple(Place(place.what, place.path, 0, place.disk) for place in machine.places_here())
    monkeypatch.setattr(examine, "places_here", lambda: places)
    monkeypatch.setattr(examine, "memory_here", lambda: Memory(6 * GB, GB // 2))
    bad = CliRunner().invoke(cli, ["doctor", "--no-canary"])
    assert isinstance(bad.exception, MdExportError)
    assert bad.exception.exit_code == 1
    assert str(bad.exception).startswith("broken: memory, this folder, temporary files, cache;")
    assert "6.0 GB available, 500 MB left in this container; any export takes at least 1.5 GB" in bad.output


@pytest.mark.parametrize("arguments", [["--checkpoint", str(nano_checkpoint())], ["coreml-fp17"]])
def test_command_refuses_what_makes_no_sense(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["doctor", *arguments])
    assert getattr(result.exception, "exit_code", None) == 2


def test_a_fault_inside_a_target_is_its_own_error() -> None:
    class Refuses(Wrong):
        def load(self, path: Path) -> Any:
            raise RuntimeFault(path.name)

    target: Any = Refuses(lambda made: made)
    with pytest.raises(RuntimeFault):
        run_canary(target, ".onnx")
