"""What was measured survives, whatever stopped the search; what somebody else wrote is no measurement."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

from md_export.engine.search.frontier import Form
from md_export.engine.search.measurements import Pass, Sample
from md_export.engine.search.measuring import Key, Line, open_journal
from md_export.errors import ArtifactError, OutputError

KEY = Key(
    checkpoint="a" * 64,
    target="onnx",
    components=("unet",),
    forms=("int8", "int4 per block of 32"),
    rewrites=(),
    rounding="nearest",
    calibration="b" * 64,
    versions={"md-export": "0.1.0", "torch": "2.13.0"},
)
ONE = Pass("unet", "conv_in", Form("int8"), 1e-5, 0.002)
TWO = Sample(3, (1e-5, 0.1 + 0.2), (0.0, 0.5))


def written(path: Path, *measurements: Line) -> list[Line]:
    """Append, and what the journal then holds, in its order."""
    with open_journal(path, KEY) as journal:
        for one in measurements:
            journal.append(one)
    with open_journal(path, KEY) as journal:
        return list(journal.found.values())


def test_what_was_measured_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "search.jsonl"
    assert written(path) == []
    assert written(path, ONE) == [ONE]
    assert written(path, TWO) == [ONE, TWO]
    assert len(path.read_text().splitlines()) == 3


def test_a_line_that_a_full_disk_cut_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"

    class AlmostFull(FileIO):
        def write(self, data: Buffer, /) -> int:
            return super().write(bytes(data)[:40])

    with open_journal(path, KEY) as journal:
        journal.append(ONE)
        vars(journal)["_stream"] = AlmostFull(path, "ab")
        with pytest.raises(OutputError, match="No space left on device"):
            journal.append(TWO)
    assert written(path) == [ONE]


def test_a_torn_line_is_dropped_wherever_it_was_torn(tmp_path: Path) -> None:
    """As a kill leaves it: all whole lines stay, and the next one starts on a line of its own."""
    path = tmp_path / "search.jsonl"
    written(path, ONE, TWO)
    content = path.read_bytes()
    head, first, second = (line + b"\n" for line in content.splitlines())
    ends = [len(head), len(head + first), len(content)]
    for end in sorted({0, 1, *range(5, len(content), 41), *ends, *(end - 1 for end in ends), ends[0] + 1}):
        path.write_bytes(content[:end])
        kept = [one for one, least in ((ONE, len(head + first)), (TWO, len(content))) if end >= least]
        assert written(path) == kept
        assert written(path, *[one for one in (ONE, TWO) if one not in kept]) == [ONE, TWO]
        assert path.read_bytes() == head + first + second


def test_killed_while_writing(tmp_path: Path) -> None:
    """A real process, killed at a random place: the journal opens, and holds a beginning of what was written."""
    path = tmp_path / "search.jsonl"
    code = (
        "import sys, itertools, dataclasses\nfrom pathlib import Path\n"
        "from engine.search.test_journal import KEY, ONE\n"
        "from md_export.engine.search.measuring import open_journal\n"
        f"with open_journal(Path({str(path)!r}), KEY) as journal:\n"
        "    for count in itertools.count():\n"
        "        journal.append(dataclasses.replace(ONE, path=f'{count}' + 'x' * (count % 900)))\n"
        "        print(count, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(20)]
    process.kill()
    told += [int(line) for line in process.communicate()[0].split()]
    paths = [one.key[1].rstrip("x") for one in written(path)]
    assert paths[: len(told)] == [f"{count}" for count in told]


def test_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    ones = [dataclasses.replace(ONE, path=f"{index}", noise=1 / (index + 3)) for index in range(20)]
    written(first, *ones)
    written(second, *ones[::-3], *ones[::2], *ones[1::2])
    with open_journal(first, KEY) as one, open_journal(second, KEY) as other:
        assert one.found == other.found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"checkpoint": "c" * 64},
            rf"checkpoint {'a' * 64}, not {'c' * 64}\. Search with the same, or remove",
        ),
        ({"target": "coreml"}, "target onnx, not coreml"),
        ({"components": ("unet", "vae_decoder")}, r'components \["unet"\], not \["unet", "vae_decoder"\]'),
        ({"rounding": "gptq", "rewrites": ("gelu_to_swish",)}, r"rewrites \[\], not .*; rounding nearest, not gptq"),
        ({"versions": {"md-export": "0.1.0", "torch": "2.14.0"}}, r"versions .*2\.13\.0.*, not .*2\.14\.0"),
    ],
)
def test_a_journal_of_another_search_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "search.jsonl"
    written(path, ONE)
    before = path.read_bytes()
    with (
        pytest.raises(ArtifactError, match=f"is of another search: {message}"),
        open_journal(path, dataclasses.replace(KEY, **change)),
    ):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"0.00001", b"NaN"),
        (b"0.00001", b"1e999"),
        (b"0.00001", b"-1.0"),
        (b"0.00001", b'"1"'),
        (b"0.002", b"null"),
        (b'"unet"', b"7"),
        (b'"int8"', b'"int5"'),
        (b'"channel"', b'"block"'),
        (b"{", b'{"surplus":1,'),
        (b"{", b""),
    ],
)
def test_a_line_that_is_no_measurement_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "search.jsonl"
    written(path, ONE, TWO)
    head, first, second = path.read_bytes().splitlines()
    assert old in first
    path.write_bytes(b"\n".join((head, first.replace(old, new, 1), second, b"")))
    with pytest.raises(ArtifactError, match="line 2: no measurement of a search; remove the file"):
        written(path)


def test_two_results_of_one_measurement_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    assert written(path, ONE, ONE) == [ONE]
    with pytest.raises(ArtifactError, match="line 4: measured before, with another result"):
        written(path, dataclasses.replace(ONE, noise=0.7))


@pytest.mark.parametrize("content", [b"x", b"{}\n", b"\0" * 50, b"[" * 9999 + b"\n", b"\n", b"\xff\n", b"{}"])
def test_other_files_are_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="no journal of"):
        written(path)
    assert path.read_bytes() == content


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 3))
def test_no_damage_crashes(tmp_path: Path, damage: bytes, line: int) -> None:
    path = tmp_path / "search.jsonl"
    path.unlink(missing_ok=True)
    written(path, ONE, TWO)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join((*lines[:line], damage, *lines[line:])))
    with contextlib.suppress(ArtifactError):
        assert set(written(path)) <= {ONE, TWO}


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    written(path, ONE)
    os.truncate(path, 65 << 20)
    with pytest.raises(ArtifactError, match="is larger than"):
        written(path)


def test_one_search_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    with (
        open_journal(path, KEY),
        pytest.raises(ArtifactError, match="open in another search"),
        open_journal(path, KEY),
    ):
        pass


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="choose another place"):
        written(tmp_path / "file" / "search.jsonl")
    with pytest.raises(OutputError, match="choose another place"):
        written(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_disk_keeps_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    with open_journal(path, KEY) as journal:
        journal.append(ONE)
        with Path("/dev/full").open("ab", buffering=0) as full:
            vars(journal)["_stream"] = full
            with pytest.raises(OutputError, match="No space left on device; what was measured before is kept"):
                journal.append(TWO)
        assert journal.found == {ONE.key: ONE}
    assert written(path) == [ONE]
