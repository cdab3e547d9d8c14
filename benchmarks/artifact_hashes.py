"""Are the exports of another version of this code the same, byte for byte?

    python benchmarks/artifact_hashes.py make LIST.json [--work FOLDER] [--only NAME]...
    python benchmarks/artifact_hashes.py compare BEFORE.json AFTER.json

`make` builds what artifact_entries.py names and lists the SHA-256 of each file. It calls the command line of the code
beside this file, one command at a time. With --work it keeps the builds and goes on where it was stopped: it does not
build an entry again whose list is in the folder.

The list is {entry: {path: SHA-256}}. A golden case is {tensor: SHA-256 of dtype, shape and bytes}. `manifest.json` and
`golden/index.json` are {field: SHA-256}; seconds, memory and hashes of golden cases are left out. `compare` accepts a
golden case with other tensor names if it holds the same values. It exits with 1 if anything differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import click

from artifact_entries import ENTRIES, HELPERS, LARGE, ROOT

FILE: Final = "(file)"  # in a golden case, the hash of the whole file
Content = str | dict[str, str]
Listing = dict[str, dict[str, Content]]


class Folders(dict[str, str]):
    """The folder for each placeholder; makes the entry that a placeholder names."""

    def __init__(self, work: Path, out: Path) -> None:
        super().__init__(out=str(out))
        self.work = work

    def __missing__(self, name: str) -> str:
        make_entry(name, self.work)
        return str(self.work / name)


def make_entry(name: str, work: Path) -> dict[str, Content]:
    """Build one entry, unless its list is there, and return the list."""
    listed, out = work / f"{name}.json", work / name
    if listed.exists():
        known: dict[str, Content] = json.loads(listed.read_text(encoding="utf-8"))
        return known
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    commands = [[word.format_map(Folders(work, out)) for word in shlex.split(line)] for line in ENTRIES[name]]
    start, cpu = time.monotonic(), cpu_seconds()
    for words in commands:
        if words[0] in HELPERS:
            HELPERS[words[0]](out)
        else:
            run(words, work, work / f"{name}.log")
    found = {path.relative_to(out).as_posix(): content_of(path) for path in sorted(out.rglob("*")) if path.is_file()}
    listed.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if name in LARGE:
        shutil.rmtree(out)
    say(f"{name}: {len(found)} files, {time.monotonic() - start:.0f} s, {cpu_seconds() - cpu:.0f} s CPU")
    return found


def run(words: list[str], work: Path, log: Path) -> None:
    """Run one command of md-export; its output goes to the end of ``log``."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MD_EXPORT_CACHE": str(work / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}
    argv = [sys.executable, "-c", "from md_export.cli import main; main()", *words]
    with log.open("a", encoding="utf-8") as file:
        print(f"$ md-export {shlex.join(words)}", file=file, flush=True)
        subprocess.run(argv, cwd=ROOT, env=env, stdout=file, stderr=file, check=True)


def cpu_seconds() -> float:
    """CPU time of all commands that have ended, with their workers and of this process."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def say(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {text}")


def content_of(path: Path) -> Content:
    """What the list says of a file."""
    golden = (path.parent / "index.json").exists()
    if golden and path.suffix == ".safetensors":
        return {FILE: hash_of(path.read_bytes()), **tensors_of(path.read_bytes())}
    if path.name == "manifest.json" or (golden and path.name == "index.json"):
        fields = without_noise(json.loads(path.read_text(encoding="utf-8")))
        return {name: hash_of(json.dumps(value, sort_keys=True).encode()) for name, value in fields.items()}
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tensors_of(content: bytes) -> dict[str, str]:
    """Hashes of dtype, shape and bytes of each tensor of a .safetensors file."""
    start = 8 + int.from_bytes(content[:8], "little")
    found = {}
    for name, tensor in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = (start + offset for offset in tensor["data_offsets"])
            found[name] = hash_of(f"{tensor['dtype']} {tensor['shape']} ".encode() + content[first:last])
    return found


def without_noise(fields: dict[str, Any]) -> dict[str, Any]:
    """Take out of a manifest or an index: seconds, memory, and what the format of golden cases decides."""
    for entry in fields.get("artifacts", ()):
        del entry["measured"]
    for case in fields.get("cases", ()):
        del case["sha256"]
    if "files" in fields:
        fields["files"] = {k: v for k, v in fields["files"].items() if not k.startswith("golden/")}
    fields.pop("golden_sha256", None)
    return fields


def difference(old: Content | None, new: Content | None) -> str:
    """Say what differs between two files; say nothing if nothing does."""
    if old is None or new is None:
        return "not in BEFORE" if old is None else "not in AFTER"
    if isinstance(old, str) or isinstance(new, str):
        return "" if old == new else "the bytes differ"
    before, after = ({name: value for name, value in one.items() if name != FILE} for one in (old, new))
    if FILE in old and before.keys() != after.keys() and Counter(before.values()) <= Counter(after.values()):
        return ""
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"{'tensors' if FILE in old else 'fields'} differ: {', '.join(names)}" if names else ""


@click.group()
def main() -> None:
    """Make a list of hashes, or compare two lists."""


@main.command()
@click.argument("target", metavar="LIST.json", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), help="Folder that keeps the builds.")
@click.option("--only", multiple=True, type=click.Choice(tuple(ENTRIES)), help="Build this entry only.")
def make(target: Path, work: Path | None, only: tuple[str, ...]) -> None:
    """Build all entries and write LIST.json; exit with 1 if an entry cannot be built."""
    listing: Listing = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in only or ENTRIES:
            try:
                listing[name] = make_entry(name, (work or Path(scratch)).resolve())
            except subprocess.CalledProcessError as error:
                say(f"{name}: exit status {error.returncode} of md-export {shlex.join(error.cmd[3:])}")
    target.write_text(json.dumps(listing, indent=1), encoding="utf-8")
    failed = len(only or ENTRIES) - len(listing)
    say(f"{target}: {len(listing)} entries, {sum(map(len, listing.values()))} files; {failed} entries failed")
    sys.exit(failed > 0)


@main.command()
@click.argument("before", type=click.Path(exists=True, path_type=Path))
@click.argument("after", type=click.Path(exists=True, path_type=Path))
def compare(before: Path, after: Path) -> None:
    """Print a line for each difference, then counts; exit with 1 if there is a difference."""
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
    count: Counter[str] = Counter()
    for entry in dict.fromkeys([*first, *second]):
        old, new = first.get(entry), second.get(entry)
        pairs = {entry: "not in BEFORE" if old is None else "not in AFTER"}
        if old is not None and new is not None:
            count["entries"] += 1
            paths = sorted(old.keys() | new.keys())
            pairs = {f"{entry}/{path}": difference(old.get(path), new.get(path)) for path in paths}
            golden = [path for path in paths if FILE in (old.get(path) or "")]
            count["files"] += len(paths)
            count["identical"] += sum(old.get(path) == new.get(path) for path in paths)
            count["golden cases"] += len(golden)
            count["golden cases equal by tensor"] += sum(not pairs[f"{entry}/{path}"] for path in golden)
        for path, text in pairs.items():
            if text:
                count["differences"] += 1
                click.echo(f"{path}: {text}")
    parts = ("entries", "files", "identical", "golden cases", "golden cases equal by tensor", "differences")
    click.echo(", ".join(f"{part}: {count[part]}" for part in parts))
    sys.exit(count["differences"] > 0)


if __name__ == "__main__":
    main()
