"""Hooks of mkdocs: pages from other folders, links out of ``docs/``, and the schema of recipes.

The pages read well on a forge and in a clone, where links to the source are relative paths. The site needs a little
more: pages for the READMEs, and links that leave it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any, Final

from recipe_schema import PLACE, schema

ROOT: Final = Path(__file__).parents[1]

# Files of the repository that are pages of the site.
PAGES: Final = {
    "README.md": "index.md",
    "recipes/README.md": "recipes.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "golden/nano/training/README.md": "nano.md",
    "examples/ios/README.md": "sample-ios.md",
    "examples/android/README.md": "sample-android.md",
}
_FENCE: Final = re.compile(r"^\s*(```|~~~)")
_LINK: Final = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")
_ROLE: Final = re.compile(r":(?:func|class|meth|mod|data|attr|exc):<code>~?(?:[\w.]*\.)?(\w+)</code>")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are kept outside of ``docs/``."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Return the page with its links as the site has them, and the recipe schema in its place."""
    sources = {name: source for source, name in PAGES.items()}
    name = page.file.src_uri
    text = relinked(markdown, sources.get(name, f"docs/{name}"), config.repo_url)
    return text.replace(PLACE, schema()) if PLACE in text else text


def on_page_content(html: str, **_: Any) -> str:
    """Return the page with the names that docstrings have in roles of reStructuredText as code."""
    return _ROLE.sub(r"<code>\1</code>", html)


def relinked(markdown: str, source: str, repository: str | None) -> str:
    """Return ``markdown`` of the repository's file ``source`` for the site: no link leaves it but by a full address.

    Without a ``repository`` such a link is relative to ``site/`` in the clone that the site was built in.
    """
    return "\n".join(
        line if fenced else _LINK.sub(lambda link: _relinked(link, source, repository), line)
        for line, fenced in _lines(markdown)
    )


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """Yield each line, and whether it is code."""
    fenced = False
    for line in markdown.split("\n"):
        edge = _FENCE.match(line) is not None
        yield line, fenced or edge
        fenced ^= edge


def _relinked(link: re.Match[str], source: str, repository: str | None) -> str:
    target, _, anchor = link["target"].partition("#")
    if not target or re.match(r"[a-z]+:", target):
        return link[0]
    path = normpath(PurePosixPath(source).parent / target)
    fragment = f"#{anchor}" if anchor else ""
    if path in PAGES:
        return f"{link['image']}[{link['text']}]({PAGES[path]}{fragment})"
    if path.startswith("docs/"):
        return f"{link['image']}[{link['text']}]({path.removeprefix('docs/')}{fragment})"
    address = f"{repository.rstrip('/')}/blob/main/{path}" if repository else relpath(path, "site")
    return f'<a href="{address}{fragment}">{link["text"]}</a>'
