"""Pages of the repository in the site, and where their links lead there."""

import re
from pathlib import Path

from docs.generate.site import site_pages

ROOT = Path(__file__).parents[3]


def a_repository(folder, **texts):
    for path, text in {"README.md": "", "CONTRIBUTING.md": "", "CHANGELOG.md": "", **texts}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return site_pages(folder)


def test_links_lead_to_the_pages_where_they_are_in_the_site(tmp_path):
    made = a_repository(
        tmp_path,
        **{
            "README.md": "[a](docs/a.md#part) [b](perf/results/b.md) ![p](docs/images/p.png) [m](methods)",
            "docs/a.md": "[b](../perf/results/b.md) [top](../README.md) [self](#part) [web](https://x.org/a.md)",
            "perf/results/b.md": "[a](../../docs/a.md) ![p](../../docs/images/p.png)",
        },
    )
    assert made["index.md"] == "[a](a.md#part) [b](measured/b.md) ![p](images/p.png) [m](reference/methods.md)"
    assert made["a.md"] == "[b](measured/b.md) [top](index.md) [self](#part) [web](https://x.org/a.md)"
    assert made["measured/b.md"] == "[a](../a.md) ![p](../images/p.png)"


def test_a_file_that_is_no_page_is_shown_on_one(tmp_path):
    made = a_repository(tmp_path, **{"docs/a.md": "[e](../examples/e.yaml)", "examples/e.yaml": "name: e\n"})
    assert made["a.md"] == "[e](files/examples/e.yaml.md)"
    assert "````yaml\nname: e\n````" in made["files/examples/e.yaml.md"]


def test_code_and_links_to_nothing_stay_as_they_are(tmp_path):
    text = "```python\nx[0](docs/a.md)\n```\n[gone](docs/gone.md) [a](docs/a.md)"
    made = a_repository(tmp_path, **{"README.md": text, "docs/a.md": ""})
    assert made["index.md"] == "```python\nx[0](docs/a.md)\n```\n[gone](docs/gone.md) [a](a.md)"


def test_all_links_of_the_repositorys_pages_lead_somewhere():
    for place, text in site_pages(ROOT).items():
        prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^()\s#:]+)", prose):
            assert not link.startswith(("/", "docs/", "perf/")), f"{place}: {link}"


def test_every_page_of_docs_is_in_the_navigation_once():
    navigation = (ROOT / "mkdocs.yml").read_text()
    times = {path.name: navigation.count(f": {path.name}\n") for path in (ROOT / "docs").glob("*.md")}
    assert {name: count for name, count in times.items() if count != 1} == {}
