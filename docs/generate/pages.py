"""The reference pages of what stands in experiment files: every key, and the options of each part that has a name.

Nothing comes in but the code itself; Markdown comes out, by the page's path in the site.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator

from pydantic import BaseModel

from benchmarks import BENCHMARKS
from docs.generate.options import definition_list, introduction, keys_of
from engine.config.experiment import Experiment
from engine.robustness.attacks import ATTACKS
from engine.search.space import Space
from methods import METHODS

EXPERIMENT = """\
# The experiment file

Every key of an experiment file, made from the models that read it (`engine/config/`). A key in another's section is
written with a dot: `train.lr` is the key `lr` of the section `train`, and `--set train.lr=2e-5` changes it for one run.
`[]` stands for the items of a list: `--set methods.0.beta=0.5` changes the first method. A key that is not set takes
the benchmark's protocol, or what its text says of None. A mistake is one line that names the nearest key.

`leakatk init` writes a complete, commented file, `leakatk init tofu` one for TOFU; `leakatk init --help` lists all.

"""
SPACE = """\
# The search space

Every key of a file for `leakatk tune SPACE.yaml EXPERIMENT.yaml`. [Searching hyperparameters](../tuning.md) says how a
search goes; `leakatk init` writes a space beside the experiment file.

"""
METHODS_TEXT = """\
# Unlearning methods

Each method's formula, its hyperparameters and their defaults, as `leakatk methods` lists them. In an experiment file
they stand beside the method's name: `methods: [{name: npo, beta: 0.1}]`. [Methods compared](../methods.md) has what
they do on the embedded benchmark, [Training](../unlearning.md) what the needs mean.

In the formulas D_f is the forget set, D_r the retain set, NLL an answer's negative log-likelihood.

"""
BENCHMARKS_TEXT = """\
# Benchmarks

Each benchmark's data and options, as `leakatk benchmarks` lists them. In an experiment file they stand beside the
benchmark's name: `benchmark: {name: tofu, split: forget05}`. [Protocols](../protocols.md) says what is asked and how,
[metrics](../metrics.md) what is reported beside leak@k.

"""
ATTACKS_TEXT = """\
# Attacks

Each attack's options, as `leakatk attacks` lists them. In an experiment file:
`attacks: [{name: quantize, scheme: nf4}]`. [Does it stay forgotten?](../robustness.md) says what each can show, and how
to read the table.

"""
OPTIONS = {
    "benchmark": "All of them: [benchmarks](benchmarks.md).",
    "methods": "All of them: [unlearning methods](methods.md).",
    "attacks": "All of them: [attacks](attacks.md).",
    "objective.attack": "All of them: [attacks](attacks.md).",
}


def pages() -> dict[str, str]:
    """Markdown by path in the site."""
    return {
        "reference/experiment.md": EXPERIMENT + "\n".join(_sections(Experiment)),
        "reference/space.md": SPACE + "\n".join(_sections(Space)),
        "reference/methods.md": METHODS_TEXT + "\n".join(_method(name) for name in METHODS),
        "reference/benchmarks.md": BENCHMARKS_TEXT + "\n".join(_benchmark(name) for name in BENCHMARKS),
        "reference/attacks.md": ATTACKS_TEXT + "\n".join(_attack(name) for name in ATTACKS),
    }


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The keys of a model, then each of its sections under a heading of its own."""
    keys = keys_of(model)
    yield definition_list(keys, prefix)
    for key in keys:
        for section in key.sections:
            path = prefix + key.name
            heading = "#" * min(2 + prefix.count("."), 3)
            anchor = "section-" + path.replace("[]", "")
            options = OPTIONS.get(path, "")
            yield f"\n{heading} `{path}{key.suffix}` {{ #{anchor} }}\n\n{introduction(section)}{options}\n"
            yield from _sections(section, f"{path}{key.suffix}.")


def _method(name: str) -> str:
    method = METHODS[name]
    needs = ", ".join(f"`{need}`" for need in sorted(method.needs)) or "the forget set alone"
    text = f"{_module_text(method)}\n\nNeeds {needs}. {introduction(method)}"
    return _named(name, text, method)


def _benchmark(name: str) -> str:
    benchmark = BENCHMARKS[name]
    facts = "\n".join(f"- **{key}**: {value}" for key, value in dataclasses.asdict(benchmark.facts).items())
    text = f"{_module_text(benchmark)}\n\n{facts}\n\n{introduction(benchmark.Options)}"
    return _named(name, text, benchmark.Options)


def _attack(name: str) -> str:
    attack = ATTACKS[name]
    servers = "Works on a model behind a server, too." if attack.on_servers else "Needs the model's weights."
    return _named(name, f"{_module_text(attack)}\n\n{servers} {introduction(attack)}", attack)


def _named(name: str, text: str, options: type[BaseModel]) -> str:
    keys = keys_of(options)
    return f"## {name}\n\n{text}\n\n{definition_list(keys, place=f'{name}.') if keys else 'It has no options.'}\n"


def _module_text(owner: type) -> str:
    """The text of the module of a class as Markdown: paragraphs, and what is indented as code."""
    parts = (inspect.getdoc(inspect.getmodule(owner)) or "").split("\n\n")
    return "\n\n".join(part if part.startswith("    ") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    """Prose whose < and * are meant as they stand, and arXiv numbers as links."""
    text = text.replace("<", "&lt;").replace("*", "\\*")
    return re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", text)
