from __future__ import annotations

import sys
from pathlib import Path

import pytest

from md_export.engine.search.building import judged
from md_export.errors import RuntimeFault


def command(code: str) -> str:
    return f'{sys.executable} -c "{code}"'


def test_the_last_line_is_the_score(tmp_path: Path) -> None:
    assert judged(command("import sys; print('seen', sys.argv[1]); print(0.75)"), tmp_path) == 0.75


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no-such-program-at-all", "cannot be started"),
        (command("raise SystemExit('no pictures')"), "no pictures"),
        (command("print('good')"), "not a score"),
        (command("print('nan')"), "not a score"),
        (command("pass"), "not a score"),
        ('"', "cannot be started"),
    ],
)
def test_a_judge_that_gives_none_is_one_clear_error(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFault, match=said):
        judged(text, tmp_path)
