"""The pages of the site out of the repository's own: where each stands in the site, and its links as they are there.

The repository's folder comes in, Markdown by path in the site comes out. A page's links are those that hold in the
repository; one to a file that is no page leads to a page that shows it. Knows nothing of MkDocs.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

AT_THE_TOP = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
FOLDERS = {"docs": "", "perf/results": "measured/"}
INSTEAD = {"methods": "reference/methods.md", "benchmarks": "reference/benchmarks.md"}  # of a folder of sources
SHOWN = "files/"  # where files that are no pages are shown
LINK = re.compile(r"(\]\()([^()\s#:]+)(#[^()\s]*)?(\))")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def site_pages(root: Path) -> dict[str, str]:
    """Markdown by path in the site, of every page of the repository and of every file that one links to."""
    places = dict(AT_THE_TOP)
    for folder, place in FOLDERS.items():
        places |= {f"{folder}/{path.name}": place + path.name for path in sorted((root / folder).glob("*.md"))}
    pages: dict[str, str] = {}
    for source, place in places.items():
        pages[place] = _linked((root / source).read_text(encoding="utf-8"), source, places, root, pages)
    return pages


def _linked(text: str, source: str, places: dict[str, str], root: Path, pages: dict[str, str]) -> str:
    """The text of a page with its links as they are in the site; the files that it links to join `pages`."""

    def changed(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        place = _place(target, places, root, pages)
        if place is None:
            return link[0]
        return link[1] + posixpath.relpath(place, posixpath.dirname(places[source]) or ".") + (link[3] or "") + link[4]

    kept, at = [], 0
    for fence in FENCE.finditer(text):
        kept += [LINK.sub(changed, text[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join(kept) + LINK.sub(changed, text[at:])


def _place(target: str, places: dict[str, str], root: Path, pages: dict[str, str]) -> str | None:
    """Where a file or folder of the repository stands in the site; None where there is no such file."""
    if target in places:
        return places[target]
    if target in INSTEAD:
        return INSTEAD[target]
    if target.startswith("docs/images/"):
        return target.removeprefix("docs/")
    path = root / target
    if not path.is_file():
        return None
    language = {".yaml": "yaml", ".py": "python", ".json": "json"}.get(path.suffix, "text")
    place = f"{SHOWN}{target}.md"
    pages[place] = f"# `{target}`\n\n````{language}\n{path.read_text(encoding='utf-8').rstrip()}\n````\n"
    return place
