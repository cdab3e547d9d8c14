"""Kill a real build at random moments, as often as asked, and see that nothing is ever half done.

    python benchmarks/kill.py [KILLS [SEED [RECIPE ...]]]

The nano checkpoint by `md-export build`, as ONNX in fp32 and fp16 unless recipes are named, killed with its workers
still at work. After each kill every entry of the cache and every export is held against its hashes; the next build goes
on where the last one was. Builds that end in between begin anew. At the end: the bytes of a build that nobody killed.
Takes about an hour on two cores.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from md_export.engine.cache import Cache
from md_export.spec.manifest import check_exports
from md_export.system.files import sha256_of

RECIPES = ["onnx-fp32", "onnx-fp16"]


def begin(folder: Path, recipes: list[str]) -> subprocess.Popen[bytes]:
    """A build in ``folder``, alone in its process group."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--cache", str(folder / "cache"), "-o", str(folder / "out"), "--jobs", "2"]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", "from md_export.cli import main; main()", "build", *recipes, *options],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def bytes_of_exports(folder: Path) -> dict[str, str]:
    """Hashes of all files, of manifests without the seconds and the memory of that run."""
    found = {}
    for path in sorted(folder.glob("out/*/**/*")):
        if path.is_file() and path.name != "manifest.json":
            found[path.relative_to(folder).as_posix()] = sha256_of(path)
    for path in sorted(folder.glob("out/*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for entry in manifest["artifacts"]:
            del entry["measured"]
        found[path.relative_to(folder).as_posix()] = json.dumps(manifest)
    return found


def check(folder: Path) -> None:
    """Raise where an entry of the cache or an export is not whole."""
    cache, damaged = Cache(folder / "cache"), list[str]()
    for entry in (folder / "cache" / "entries").glob("*"):
        cache.get(entry.name, damaged.append)
    assert not damaged, damaged
    if any(folder.glob("out/[!.]*")):
        for export in check_exports(folder / "out"):
            assert not export.differences, export


def main(kills: int, seed: int, recipes: list[str]) -> None:
    chance = random.Random(seed)  # noqa: S311
    with tempfile.TemporaryDirectory(prefix="md-export-kill-") as scratch:
        whole, folder = Path(scratch) / "whole", Path(scratch) / "killed"
        started = time.perf_counter()
        assert begin(whole, recipes).wait() == 0, (whole / "log.txt").read_text()
        longest, wanted = time.perf_counter() - started, bytes_of_exports(whole)
        killed = ended = 0
        while killed < kills:
            build = begin(folder, recipes)
            try:
                assert build.wait(chance.uniform(0, 0.7 * longest)) == 0, (folder / "log.txt").read_text()
                ended += 1
                assert bytes_of_exports(folder) == wanted
                shutil.rmtree(folder)
            except subprocess.TimeoutExpired:
                os.kill(build.pid, signal.SIGKILL)
                build.wait()
                killed += 1
                check(folder)
                print(f"{killed} kills, {ended} builds ended between them, all whole", flush=True)
        assert begin(folder, recipes).wait() == 0, (folder / "log.txt").read_text()
        assert bytes_of_exports(folder) == wanted
    print(f"seed {seed}: after {kills} kills the bytes are those of a build that nobody killed, {longest:.0f} s long")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int(given[0]) if given else 50, int(given[1]) if len(given) > 1 else 1, given[2:] or RECIPES)
