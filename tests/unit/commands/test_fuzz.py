"""Whatever a user writes ends in an exit code and at most one line: no traceback, no hang, no half-written file.

The same cases at every run: 270, with LEAKATK_FUZZ=1 (`make test`) 5,400 and with 10 (`make fuzz`) ten times as many.
"""

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.cli import COMMANDS, main
from engine.config.experiment import load_experiment
from engine.errors import UserError
from engine.reporting.results import read_results
from engine.search.space import load_space

ROOT = Path(__file__).parents[3]
EXAMPLES = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "examples").glob("*.yaml"))]
EXAMPLES = [each for each in EXAMPLES if isinstance(each, dict) and "benchmark" in each]
SPACES = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "tune_spaces").glob("*.yaml"))]
LONGEST_SECONDS = 60  # a case that takes longer hangs: they take milliseconds

NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "4",
    "1e-5",
    "1e400",
    "nan",
    "-inf",
    "0.95",
    "9" * 30,
    "1_0",
    "٣",
    "1,2",
    "1,,2",
    "2,1,2",
]
WORDS = [
    "",
    "-",
    "--",
    "-h",
    "x",
    "npo",
    "rule-npo",
    "fictional",
    "tofu",
    "exact_fact",
    "é\n",
    "\udcff",
    "a" * 300,
    "~",
]
FLAGS = """--set --store --json --seed --methods --model --benchmark --retain --metric --option --out --k --confidence
    --interval --plan --threshold --beyond --port --help""".split()
OVERRIDES = [
    "=",
    "a=1",
    "train.lr=1e-5",
    "train=1",
    "methods.0.beta=x",
    "methods.9.beta=1",
    "methods.-1=[]",
    "seed={",
    "seed=!!x",
]
FILES = [
    "good.yaml",
    "wrong.yaml",
    "space.yaml",
    "good.jsonl",
    "scores.jsonl",
    "other.jsonl",
    "broken.jsonl",
    "folder",
    "absent",
    "out.jsonl",
]

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(WORDS + NUMBERS)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def cases(number):
    return settings(
        max_examples=round(number * float(os.environ.get("LEAKATK_FUZZ", "0.05"))),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def no_hang():
    def ring(*_):
        raise AssertionError(f"still at work after {LONGEST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def end_of(argv):
    """Exit code of a command line; fails on more than an exit code and, where it is 2, one line."""
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors) for errors in ("strict", "backslashreplace")
    )
    with no_hang(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as end:  # --help
            code = end.code
        out.flush()
        err.flush()
    said = err.buffer.getvalue().decode()
    assert code in (0, 1, 2)
    assert "Traceback" not in said
    if code == 2:
        assert said.splitlines()[-1].startswith("leakatk: "), said
        assert not [
            line for line in said.split("\n")[:-1] if not ("left out" in line or line.startswith("leakatk: "))
        ], said
    left = [path.name for path in Path().iterdir() if path.name.startswith(".")]
    assert not left, f"half-written: {left}"
    return code


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory):
    """A folder with good and bad files; commands that would start real work end where it would begin."""
    folder = tmp_path_factory.mktemp("fuzz")
    rows = [
        {"prompt_id": each, "prompt": "q", "reference": "red fox", "responses": ["a red fox", "no"]} for each in "ab"
    ]
    scores = [{"prompt_id": each, "scores": [0, 1, 0.5, None]} for each in "ab"]
    (folder / "good.yaml").write_text(yaml.safe_dump({"name": "x", "benchmark": {"name": "fictional"}}))
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACES[0]))
    (folder / "wrong.yaml").write_text("name: [")
    (folder / "good.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("scores.jsonl", "other.jsonl"):
        (folder / name).write_text("\n".join(map(json.dumps, scores)))
    (folder / "broken.jsonl").write_bytes(b'{"prompt_id": "\xff\n[[[')
    (folder / "folder").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("run", "demo", "evaluate"):
            __import__(f"engine.commands.{name}")
            patch.setattr(sys.modules[f"engine.commands.{name}"], "run_experiment", lambda *_: 0)
        patch.setattr("engine.search.finish.search", lambda *_, **__: sys.exit(0))
        patch.setattr(os, "execv", lambda *_: sys.exit(0))
        yield folder


def loads_or_refuses(path, overrides=()):
    """A valid experiment or a UserError, nothing else."""
    with no_hang(), contextlib.suppress(UserError):
        load_experiment(path, overrides)


@cases(500)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_an_experiment_file_of_any_bytes_loads_or_is_refused(content):
    Path("any.yaml").write_bytes(content)
    loads_or_refuses("any.yaml")


@cases(300)
@given(values)
def test_an_experiment_file_of_any_yaml_loads_or_is_refused(value):
    Path("any.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
    loads_or_refuses("any.yaml")


def places(node, path=()):
    """Paths of every value in a nested document."""
    yield path
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(child, (*path, key))


@st.composite
def mutated(draw, examples):
    """A valid document with one to three of its values replaced, removed, or given a neighbour."""
    document = json.loads(json.dumps(draw(st.sampled_from(examples))))
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from([path for path in places(document) if path]))
        node = document
        for key in parents:
            node = node[key]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "replace":
            node[last] = draw(values)
        elif change == "remove":
            del node[last]
        elif isinstance(node, dict):
            node[draw(st.text(max_size=8))] = draw(values)
        else:
            node.append(draw(values))
        if not any(places(document)):
            break
    return document


@cases(700)
@given(mutated(EXAMPLES))
def test_a_damaged_example_loads_or_is_refused(document):
    Path("any.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    loads_or_refuses("any.yaml")


@pytest.fixture(scope="module")
def searched(fictional, workplace):
    return load_experiment("good.yaml").with_protocol(fictional.protocol)


@cases(600)
@given(mutated(SPACES) | values)
def test_a_damaged_search_space_loads_or_is_refused(searched, fictional, document):
    Path("any.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    with no_hang(), contextlib.suppress(UserError):
        load_space("any.yaml", searched, fictional)


KEYS = sorted({".".join(map(str, path)) for example in EXAMPLES for path in places(example) if path})
overrides = st.text(max_size=30) | st.builds(
    "{}={}".format,
    st.sampled_from(KEYS) | st.text(max_size=8),
    scalars | values.map(lambda value: yaml.safe_dump(value).strip()),
)


@cases(1000)
@given(st.lists(overrides, min_size=1, max_size=3))
def test_an_override_of_any_text_is_taken_or_refused(changes):
    loads_or_refuses(ROOT / "examples" / "fictional.yaml", changes)


def lines(fields):
    """JSON lines whose rows have these fields, some of them missing, of another type, cut or not JSON at all."""
    row = st.fixed_dictionaries({}, optional={name: good | values for name, good in fields.items()})
    text = (
        row.map(lambda each: json.dumps(each).encode())
        | st.binary(max_size=40)
        | values.map(lambda v: json.dumps(v).encode())
    )
    cut = st.tuples(text, st.integers(0, 80)).map(lambda pair: pair[0][: pair[1]])
    return st.lists(text | cut, max_size=6).map(b"\n".join)


ids = st.sampled_from(["a", "b", "c", "../../x", "\x00", 1, 2])
words = st.sampled_from(["red fox", "a", "", "é"]) | st.text(max_size=10)
generations = lines({
    "prompt_id": ids, "prompt": words, "reference": words, "ground_truth": words, "fact": words,
    "responses": st.lists(words | st.none() | st.fixed_dictionaries({"response": words}), max_size=4),
})  # fmt: skip
scores = lines({"prompt_id": ids, "scores": st.lists(st.floats(0, 1) | st.none() | scalars, max_size=5)})


@cases(600)
@given(generations, st.sampled_from(["exact_fact", "rouge_l_recall"]))
def test_generations_of_any_bytes_are_scored_or_refused(content, metric):
    Path("any.jsonl").write_bytes(content)
    Path("any-scores.jsonl").unlink(missing_ok=True)
    code = end_of(["score", "any.jsonl", "--metric", metric, "--out", "any-scores.jsonl", "--json"])
    assert Path("any-scores.jsonl").exists() == (code == 0)
    if code == 0:
        rows = [json.loads(line) for line in Path("any-scores.jsonl").read_text().splitlines()]
        assert all(score is None or 0 <= score <= 1 for row in rows for score in row["scores"])


@cases(400)
@given(
    scores,
    st.sampled_from(
        [[], ["--k", "1,2"], ["--retain", "scores.jsonl"], ["--threshold", "0.5", "--beyond", "beta-binomial"]]
    ),
)
def test_scores_of_any_bytes_give_a_curve_or_are_refused(content, further):
    Path("any.jsonl").write_bytes(content)
    end_of(["leak", "any.jsonl", "--json", *further])


@cases(300)
@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()) | st.fixed_dictionaries(
    {}, optional={key: values for key in ("name", "models", "failed", "experiment", "benchmark", "seconds")}
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_results_of_any_bytes_are_read_or_refused(content):
    Path("any.json").write_bytes(content)
    with no_hang(), contextlib.suppress(UserError):
        read_results("any.json")


tokens = st.sampled_from(FLAGS) | st.sampled_from(FILES) | st.sampled_from(WORDS + NUMBERS + OVERRIDES)
likely = st.sampled_from([
    ["leak", "scores.jsonl"], ["leak", "scores.jsonl", "--json"],
    ["score", "good.jsonl", "--metric", "exact_fact", "--out", "out.jsonl"],
    ["run", "good.yaml"], ["tune", "space.yaml", "good.yaml"],
    ["evaluate", "--model", "absent", "--benchmark", "fictional"], ["demo"], ["report", "folder"],
    ["ui", "--store", "folder"],
])  # fmt: skip


@cases(1000)
@given(likely | st.sampled_from(list(COMMANDS)).map(lambda name: [name]) | st.just([]), st.lists(tokens, max_size=5))
def test_a_command_line_of_any_words_ends_with_an_exit_code(start, further):
    end_of([*start, *further])
