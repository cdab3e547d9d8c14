"""What the command line says becomes a request, and what contradicts itself is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

from md_export.cli.build import search
from md_export.engine.search.request import Budget, SearchRequest
from md_export.engine.search.results import TRADE_OFF, Figures, TradeOff
from md_export.errors import UsageError
from md_export.spec.shipped_files import nano_checkpoint

FIGURES = Figures(bytes=1000, bits=4.5, picture_db=34.0, snr_db={"unet": 20.0})
FOUND = TradeOff("onnx", "at most 4.5 bits", (FIGURES,), {"int4": FIGURES}, FIGURES, {"chosen": FIGURES})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[SearchRequest]:
    """Requests that came; the search itself has tests of its own."""
    monkeypatch.chdir(tmp_path)
    requests: list[SearchRequest] = []

    def find(request: SearchRequest, count: Callable[[int, int, str], None], tell: Callable[[str], None]) -> TradeOff:
        tell("golden cases")
        count(1, 2, "about 3 s left")
        requests.append(request)
        request.out.mkdir()
        return FOUND

    module = ModuleType("md_export.engine.search.run")
    vars(module)["search"] = find
    monkeypatch.setitem(sys.modules, "md_export.engine.search.run", module)
    for folder, name in (("folder", "unet"), ("g", "index.json")):
        Path(folder).mkdir()
        Path(folder, name).touch()
    Path("p.txt").touch()
    return requests


def ask(*words: str) -> Result:
    return CliRunner().invoke(search, ["--target", "onnx", "-o", "out", *words])


def test_words_become_a_request(asked: list[SearchRequest], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    words = (
        "--budget",
        "bits=4.5",
        "--budget",
        "picture=30",
        "--component",
        "unet",
        "--rounding",
        "gptq",
        "--jobs",
        "3",
    )
    result = ask("folder", *words, "--prompts", str(tmp_path / "prompts.txt"), "--json", "-")
    assert result.exit_code == 0, result.output
    assert [replace(one, resources=None) for one in asked] == [
        SearchRequest(
            checkpoint=Path("folder"),
            target="onnx",
            budget=Budget(bits=4.5, picture_db=30.0),
            out=Path("out"),
            rounding="gptq",
            components=("unet",),
            prompts=("a cat", "a dog"),
            jobs=3,
        )
    ]
    assert TRADE_OFF.validate_json(result.stdout) == FOUND
    assert "<svg" in Path("out", "curve.svg").read_text()
    assert "1 of 2 measurements, about 3 s left" in result.stderr


def test_what_is_not_said(asked: list[SearchRequest]) -> None:
    assert ask("--budget", "score=0.9", "--judge", "./judge", "--recipe", "onnx-int8").exit_code == 0
    (request,) = asked
    assert request.checkpoint == nano_checkpoint()
    assert request.recipe is not None
    assert request.recipe.name == "onnx-int8.toml"
    assert (request.judge, request.jobs, request.dask) == ("./judge", None, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "needs a --budget"),
        (("--budget", "bits=4", "--prompts", "p.txt", "--golden", "g"), "--prompts and --golden both set"),
        (("--budget", "bits=4", "--jobs", "2", "--dask", "tcp://x:1"), "--jobs is for this machine"),
        (("--budget", "score=1"), "add --judge COMMAND"),
    ],
)
def test_contradictions(asked: list[SearchRequest], words: tuple[str, ...], message: str) -> None:
    result = ask(*words)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert not asked


def test_an_interrupt_says_how_to_go_on(asked: list[SearchRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["md_export.engine.search.run"], "search", interrupted)
    result = ask("--budget", "bits=4")
    assert result.exit_code == 130
    assert "interrupted; run the same command again to continue" in result.stderr
    assert not asked
