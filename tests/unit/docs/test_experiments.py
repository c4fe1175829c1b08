"""What the pages show of experiment files is read as users' files are."""

import re
from pathlib import Path

import pytest

from benchmarks import BENCHMARKS
from engine.config.experiment import Experiment, parse_experiment
from engine.config.loader import read_yaml
from engine.errors import UserError
from engine.robustness.reading import attacks_of

ROOT = Path(__file__).parents[3]
LEAST = {"benchmark": {"name": "fictional"}, "methods": [{"name": "npo"}]}


def shown(folder):
    """By page and number, the mappings in its blocks of YAML whose keys are those of an experiment."""
    found = {}
    for page in sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"]):
        text = page.read_text()
        blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) + re.findall(r"\n\n((?: {4}[^\n]*\n)+)", text)
        for number, block in enumerate(blocks):
            file = folder / f"{page.stem}-{number}.yaml"
            file.write_text(re.sub("^    ", "", block, flags=re.MULTILINE) if block.startswith("    ") else block)
            try:
                document = read_yaml(file, "")
            except UserError:  # a command, or Python
                continue
            if document.keys() <= Experiment.model_fields.keys():
                found[file.stem] = document
    return found


def test_experiments_on_the_pages_are_read(tmp_path):
    pages = shown(tmp_path)
    assert {name.partition("-")[0] for name in pages} >= {"robustness", "unlearning", "endpoints"}
    for name, document in pages.items():
        whole = LEAST | document
        if "endpoint" in document.get("model", {}):
            del whole["methods"]  # models behind a server are evaluated only
        attacks_of(parse_experiment(whole, name), BENCHMARKS["fictional"].load())


def test_on_is_a_key_and_no_a_word(tmp_path):
    (tmp_path / "e.yaml").write_text("on: retain\nname: no\nfast: true\nslow: False\nhalf: truer\n")
    read = read_yaml(tmp_path / "e.yaml", "")
    assert read == {"on": "retain", "name": "no", "fast": True, "slow": False, "half": "truer"}


@pytest.mark.parametrize("said", ["yes", "on", "true", "True"])
def test_a_switch_may_still_be_said_so(tmp_path, said):
    (tmp_path / "e.yaml").write_text(f"benchmark: {{name: fictional}}\nmodel: {{path: m, trust_remote_code: {said}}}\n")
    assert parse_experiment(read_yaml(tmp_path / "e.yaml", ""), "e.yaml").model.trust_remote_code is True


@pytest.mark.parametrize("said", ["yes", "no", "Off"])
def test_a_word_is_no_switch_of_a_template_to_which_any_text_is_true(tmp_path, said):
    (tmp_path / "e.yaml").write_text(
        f"benchmark: {{name: fictional}}\nmodel: {{template_options: {{think: {said}}}}}\n"
    )
    with pytest.raises(UserError, match=f"think: write true or false, found {said}"):
        parse_experiment(read_yaml(tmp_path / "e.yaml", ""), "e.yaml")
