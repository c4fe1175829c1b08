"""What MkDocs calls when it gathers the files of the site: the repository's pages, and those made from the code."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docs.generate.commands import command_page
from docs.generate.pages import pages
from docs.generate.site import FOLDERS, site_pages

ROOT = Path(__file__).parents[2]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The pages of perf/results, at the end of the navigation by their titles."""
    measured = sorted(path.name for path in (ROOT / "perf" / "results").glob("*.md"))
    config.nav.append({"Measured": [FOLDERS["perf/results"] + name for name in measured]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    made = site_pages(ROOT) | pages() | {"reference/commands.md": command_page()}
    for path, text in made.items():
        if (there := files.get_file_from_path(path)) is not None:
            files.remove(there)
        files.append(File.generated(config, path, content=text))
    return files
