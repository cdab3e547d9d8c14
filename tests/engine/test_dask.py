"""A build on a cluster of two processes that share nothing but the store: nothing is lost when one of them dies."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
from click.testing import CliRunner, Result

from engine.toy import Quiet, toy_build, toy_plan
from md_export.cli import cli
from md_export.engine import dask, executors
from md_export.engine.build_recipe import load_recipes
from md_export.engine.cache import Cache
from md_export.engine.dask import versions
from md_export.engine.export import build
from md_export.engine.request import BuildRequest
from md_export.engine.shared_store import Store
from md_export.errors import MdExportError, RuntimeFault, UsageError
from md_export.spec.manifest import check_export
from md_export.system.files import sha256_of
from support import Exported

distributed = pytest.importorskip("distributed")
fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two machines."""
    return tmp_path_factory.mktemp("machines")


@pytest.fixture(scope="module")
def cluster(machines: Path) -> Iterator[str]:
    """A scheduler with two worker processes, each with a cache of its own."""
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard_address": None, "host": "127.0.0.1", "port": 0}}

    def worker(name: str) -> dict[str, object]:
        env = {"MD_EXPORT_CACHE": str(machines / name), "TOY_HOLD": str(machines / "hold")}
        return {"cls": distributed.Nanny, "options": {"nthreads": 2, "env": env, "local_directory": str(machines)}}

    with distributed.SpecCluster({name: worker(name) for name in ("a", "b")}, scheduler) as found:
        yield found.scheduler_address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a checkpoint in it."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "weights").write_text("weights")
    return tmp_path


def on(cluster: str, folder: Path) -> dict[str, Any]:
    return {"dask": cluster, "store": f"file://{folder}/store"}


def exports(folder: Path) -> dict[str, str]:
    return {one.name: sha256_of(one) for one in (folder / "out").glob("export-*")}


class Killer(Quiet):
    """Kills whatever process has left its number in a file."""

    def __init__(self, hold: Path) -> None:
        super().__init__()
        self.hold, self.killed = hold, 0

    def tick(self) -> None:
        if self.hold.is_file() and self.hold.read_text().isdigit():
            os.kill(int(self.hold.read_text()), signal.SIGKILL)
            self.killed += 1
            self.hold.unlink()


def test_a_worker_killed_in_mid_step_costs_nothing_but_time(cluster: str, machines: Path, folder: Path) -> None:
    toy_build(folder / "local", Quiet())
    (machines / "hold").write_text("part-1")
    with patch.dict(vars(executors), {"_LOOK_S": 0.0}):
        outcome = toy_build(folder, listener := Killer(machines / "hold"), **on(cluster, folder))
    assert listener.killed == 1
    assert ["is gone; its step will be repeated" in line for line in listener.lines].count(True) == 1
    assert outcome.failures == ()
    assert {one.status for one in outcome.exports} == {"built"}
    assert exports(folder) == exports(folder / "local") != {}
    store, local = Store(on(cluster, folder)["store"]), Cache(folder / "local" / "cache")
    for step in toy_plan().steps:
        assert store.read(step.key) == local.read(step.key) != None  # noqa: E711 (none of the three)
        assert Cache(folder / "cache").get(step.key) is not None
    assert toy_build(folder, again := Quiet(), **on("tcp://127.0.0.1:1", folder)).failures == (), "not even asked for"
    assert again.ran == []


class RealKiller(Quiet):
    """Kills the worker that carries the decoder's step out, as soon as that step has a process."""

    def __init__(self) -> None:
        super().__init__()
        self.orphan: psutil.Process | None = None

    def tick(self) -> None:
        if self.orphan is None and self.ran[-1:] == ["onnx-fp32: vae_decoder"]:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error, IndexError):
                    if "run_server()" in " ".join(process.cmdline()) and process.ppid() != os.getpid():
                        self.orphan = process.children()[0]
                        process.parent().kill()


@pytest.mark.slow
def test_the_real_road_with_a_worker_killed(cluster: str, tmp_path: Path, nano: Path, exported: Exported) -> None:
    (tmp_path / "build.toml").write_text('name = "x"\nrecipes = ["onnx-fp32"]\ncomponents = ["vae_decoder"]\n')
    places = {"out": tmp_path / "out", "cache": tmp_path / "cache", **on(cluster, tmp_path)}
    recipes = load_recipes([tmp_path / "build.toml"])
    outcome = build(BuildRequest(recipes, nano, **places), listener := RealKiller())
    assert listener.orphan is not None
    assert not listener.orphan.is_running(), "a step ends with its worker"
    assert [(one.name, one.status) for one in outcome.exports] == [("onnx-fp32", "built")]
    here, there = tmp_path / "out" / "onnx-fp32", exported("onnx", "fp32")
    for name in ("vae_decoder.onnx", "golden", "tokenizer"):
        assert sha256_of(here / name) == sha256_of(there / name)
    checked = check_export(here)
    assert (checked.differences, checked.unlisted) == ((), ())


def test_what_the_store_has_is_fetched_and_what_was_altered_there_is_built_again(cluster: str, folder: Path) -> None:
    toy_build(folder, Quiet(), **on(cluster, folder))
    before = exports(folder)
    for name in ("out", "cache"):
        shutil.rmtree(folder / name)
    assert toy_build(folder, fetched := Quiet(), **on(cluster, folder)).failures == ()
    assert (fetched.ran, exports(folder)) == ([], before)
    part = toy_plan().steps[2]
    entry = Store(on(cluster, folder)["store"]).read(part.key)
    assert entry is not None
    path = folder / "store" / "files" / entry.files["part-1/b"].sha256
    path.write_bytes(b"?" + path.read_bytes()[1:])
    for name in ("out", "cache"):
        shutil.rmtree(folder / name)
    assert toy_build(folder, built := Quiet(), **on(cluster, folder)).failures == ()
    assert "store: part-1 is damaged (part-1/b); it will be built again" in built.lines
    assert sorted(built.ran) == ["export-0", "export-1", "part-1"]
    assert exports(folder) == before


def test_what_this_machine_has_built_serves_the_workers(cluster: str, folder: Path) -> None:
    toy_build(folder, Quiet())
    for name in ("export-0", "export-1", "export-2"):
        shutil.rmtree(folder / "out" / name)
    for step in toy_plan().steps[-3:]:
        Cache(folder / "cache").remove(step.key)
    assert toy_build(folder, listener := Quiet(), **on(cluster, folder)).failures == ()
    assert sorted(listener.ran) == ["export-0", "export-1", "export-2"]


def test_a_store_that_workers_do_not_see_is_named(cluster: str, folder: Path) -> None:
    with pytest.raises(RuntimeFault, match=r"the Dask worker tcp://.* does not find .* in memory://x.* such as s3://"):
        toy_build(folder, Quiet(), dask=cluster, store="memory://x")
    fsspec.filesystem("memory").store.clear()


def test_a_worker_of_another_version_is_named(cluster: str, folder: Path) -> None:
    other = versions(("onnx",)) | {"onnxruntime": "99.0"}
    with (
        patch.dict(vars(dask), {"versions": lambda _: other}),
        pytest.raises(
            RuntimeFault, match=r"the Dask worker tcp://.* has onnxruntime .*, this machine has 99\.0; install the same"
        ),
    ):
        toy_build(folder, Quiet(), **on(cluster, folder))


def test_a_worker_that_comes_later_is_asked_too(cluster: str, folder: Path) -> None:
    """As the one above, but the question before the first step finds nothing."""
    other = versions(("onnx",)) | {"onnxruntime": "99.0"}
    with patch.dict(vars(dask), {"versions": lambda _: other, "check_same": lambda *_: None}):
        outcome = toy_build(folder, Quiet(), **on(cluster, folder))
    assert "has onnxruntime" in outcome.failures[0].reason
    assert [one.follows for one in outcome.failures] == [False] + [True] * 7
    assert {one.status for one in outcome.exports} == {"failed"}


def ask(*words: str) -> Result:
    return CliRunner().invoke(cli, ["build", "onnx-int8", "-o", "nowhere", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dask", "tcp://x:1"), "--dask and --store go together"),
        (("--store", "s3://x"), "--dask and --store go together"),
        (("--dask", "tcp://x:1", "--store", "s3://x", "--jobs", "2"), "--jobs is for this machine"),
    ],
)
def test_contradictions(words: tuple[str, ...], message: str) -> None:
    error = ask(*words).exception
    assert isinstance(error, UsageError)
    assert message in str(error)


def test_nobody_at_the_address(folder: Path) -> None:
    with (
        patch("md_export.engine.dask._CONNECT_S", 0.5),
        pytest.raises(MdExportError, match="no Dask scheduler answers"),
    ):
        toy_build(folder, Quiet(), **on("tcp://127.0.0.1:1", folder))
