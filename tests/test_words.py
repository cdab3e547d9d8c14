"""`make words` reports every phrase of its list and a misspelled word, and passes a page without them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def words(page: Path) -> subprocess.CompletedProcess[str]:
    # --old-file: the environment that runs this test is the one to use; nothing is installed.
    variables = [f"BIN={Path(sys.executable).parent}", f"PROSE={page}"]
    command = ["make", "--silent", "--old-file=.venv/.ready", "words", *variables]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_each_phrase_is_reported_once(tmp_path: Path) -> None:
    listed = [line.partition("->")[0] for line in (ROOT / ".ci/words").read_text().splitlines()]
    page = tmp_path / "page.md"
    lines = [f"The text {phrase} ends here.\n" for phrase in [*listed, *map(str.title, listed), "teh"]]
    page.write_text("".join(lines).replace(" ,", ","))
    found = words(page)
    assert found.returncode != 0
    assert [int(line.split(":")[1]) for line in found.stdout.splitlines()] == list(range(1, 2 * len(listed) + 2))
    page.write_text("The artifact is compared with its checkpoint.\n")
    assert words(page).returncode == 0
