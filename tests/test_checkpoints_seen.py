"""docs/checkpoints-seen.md is what the tests' markers say."""

from __future__ import annotations

from pathlib import Path

from checkpoints_seen import page, rows


def test_the_page_is_up_to_date() -> None:
    kinds = [kind for kind, _, _ in rows()]
    assert len(kinds) > 20
    assert (Path(__file__).parents[1] / "docs/checkpoints-seen.md").read_text(encoding="utf-8") == page()
