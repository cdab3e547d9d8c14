"""Every command and link of the documentation: checked without running it, and run where a block says so."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import click
import pytest

from fenced import PAGES, ROOT, blocks, fault, run_page, shell_blocks, simple_commands, usage_fault
from fine_tunes import write_fine_tune
from md_export.cli import cli

SHELL = [block for page in PAGES for block in shell_blocks(page)]
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


# Pages some of whose commands run here; those that export take minutes, and make bench runs them.
RUN = [page for page in PAGES if any(block.mark == "run" for block in shell_blocks(page))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        text = text.replace(block.text, "")
    return text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_one(page: Path) -> None:
    """Options, arguments and values that click takes; scripts, targets and extras that exist."""
    found = [
        f"line {block.line}: {' '.join(words)}: {why}"
        for block in shell_blocks(page)
        for words in block.commands
        if (why := fault(words))
    ]
    assert found == []


def test_there_are_commands() -> None:
    """The pattern of blocks finds them, and no block of commands hides in another language."""
    words = [words for block in SHELL for words in block.commands]
    assert sum(one[0] == "md-export" for one in words) > 100
    others = [block for page in PAGES for block in blocks(page) if block not in SHELL]
    assert [block for block in others if re.match(r"(\$ )?(md-export|python|make|pip) ", block.text)] == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("md-export coreml model --fp17 -o out", "--fp17"),
        ("md-export coremll model -o out", "coremll"),
        ("md-export coreml model --fp16", "-o"),
        ("md-export coreml model --size big -o out", "big"),
        ("md-export manifest sealed out", "sealed"),
        ("md-export build -o out", "RECIPE"),
        ("cd x && MD_EXPORT_CACHE=y md-export verify out --goden z  # why", "--goden"),
        ("python benchmarks/none.py 3", "benchmarks/none.py"),
        ("pip install 'md-export[coreml,android]'", "android"),
        ("make demos", "demos"),
        ("brew install md-export", "brew"),
    ],
)
def test_a_wrong_command_is_found(line: str, why: str) -> None:
    found = [fault(words) for words in simple_commands(line)]
    assert any(one and why in one for one in found), found


@pytest.mark.parametrize(
    "line", ["md-export --help", "md-export manifest check out --pin x.json", "md-export coreml -o out | tee log"]
)
def test_a_right_command_is_not(line: str) -> None:
    assert fault(next(simple_commands(line))) is None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_prose(page: Path) -> None:
    """They may leave arguments out, but name commands and options that exist."""
    found = [
        f"{text}: {why}"
        for text in re.findall(r"`(md-export [^`<]+)`", prose(page))
        for words in simple_commands(" ".join(text.split()))
        if not any(word.lstrip("-").isupper() and len(word) > 2 and word.startswith("--") for word in words)
        if words[1] != "COMMAND" and (why := usage_fault(words[1:], partial=True))
    ]
    assert found == []


def test_a_wrong_option_in_the_prose_is_found() -> None:
    assert usage_fault(["coreml", "--fp16"], partial=True) is None
    assert "--fp17" in (usage_fault(["coreml", "--fp17"], partial=True) or "")
    assert "coremll" in (usage_fault(["coremll"], partial=True) or "")


def test_every_command_has_its_row() -> None:
    """docs/commands.md has all commands, by task."""
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`([a-z-]+)(?= |`)", page))
    assert {name for name, command in cli.commands.items() if isinstance(command, click.Command)} <= listed


def anchors(page: Path) -> Iterator[str]:
    """Names of the headings as forges and the site make them."""
    for heading in _HEADING.findall(prose(page)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        yield re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    found = []
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# One, and *two*\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[1](b.md#one-and-two) [2](b.md#three) [3](c.md) [4](https://x.org)\n```sh\n[5](d.md)\n```\n# X\n[6](#x)\n"
    )
    assert broken(page) == ["b.md#three", "c.md"]


def test_every_page_is_in_the_navigation() -> None:
    """The strict build of the site checks the rest."""
    listed = set(re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= listed


def call(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", "from md_export.cli import main; main()", *words[1:]]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def fine_tune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion in one file, a tokenizer and a LoRA, under the names that the pages use."""
    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    return write_fine_tune(tmp_path_factory.mktemp("fine-tune"))


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_commands_run(page: Path, tmp_path: Path, fine_tune: Path) -> None:
    """They end as the page says, and print what it shows but for the numbers."""
    folder = Path(shutil.copytree(fine_tune, tmp_path / "work"))
    assert list(run_page(page, folder, call)) == []


def test_what_a_page_says_wrongly_is_found(tmp_path: Path) -> None:
    def said(words: list[str], _: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 3 if "bad" in words else 0, "│ unet │  12.5 │ ok │\n", "")

    page = tmp_path / "page.md"
    body = "$ md-export verify good\n┃ unet ┃ 7.25 ┃ ok ┃\n…\n$ md-export verify bad  # exit 3\n"
    page.write_text(f"<!-- test: run -->\n```console\n{body}```\n")
    assert list(run_page(page, tmp_path, said)) == []
    page.write_text(page.read_text().replace("ok", "FAIL").replace("  # exit 3", ""))
    assert [line.partition(":")[2][:12] for line in run_page(page, tmp_path, said)] == [" does not pr", " exit 3: │ u"]
