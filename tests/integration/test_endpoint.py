"""Models behind a server: the same distribution as here, and failures counted all the way to the table."""

import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import pytest
import scipy.stats

from benchmarks.base import Decoding, Probe
from engine.cli import main
from engine.cluster.reporter import Silent
from engine.cluster.units import read_units
from engine.errors import UserError
from engine.stages.sample import SampleJob
from engine.stages.sample_endpoint import EndpointJob, endpoint
from tests.chat_server import ChatServer, asked, words

KEY = "LEAKATK_TEST_KEY"  # the variable; set before Ray starts


@pytest.fixture(scope="module")
def served(base_model, tmp_path_factory):
    """(URL of `transformers serve`, folder) of a random Llama whose generation config cuts and cools by default."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(base_model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.update(do_sample=True, top_k=50, temperature=0.3, repetition_penalty=2.0)
    model.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    command = [sys.executable, "-m", "transformers.cli.transformers", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait()


def _wait_for(url, process):
    for _ in range(600):
        assert process.poll() is None, "the server did not start"
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


def generations(job, folder):
    folder.mkdir(exist_ok=True)
    facts = job.run(folder, Silent())
    return facts, read_units(folder)


def local(folder, probes, decoding, tmp_path, **options):
    from engine.models.source import model_source

    tmp_path.mkdir()
    SampleJob(model_source(folder), probes, decoding, 1, **options).run(tmp_path, Silent())
    return read_units(tmp_path)["response"].to_pylist()


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_real_server_answers_greedily_as_the_model_does_here(served, fictional, tmp_path, template):
    url, folder = served
    probes, greedy = tuple(fictional.probes[:12]), Decoding(temperature=0.0)
    job = EndpointJob(endpoint(url, folder), probes, greedy, 1, 8, chat=template == "chat")
    facts, table = generations(job, tmp_path / "asked")
    expected = local(folder, probes, greedy, tmp_path / "local", max_new_tokens=8, template=template)
    assert table["response"].to_pylist() == expected
    assert len(set(expected)) > 1
    assert facts["missing"] == {}
    assert table["logprob"].null_count == table["model_logprob"].null_count == table["token_ids"].null_count == 12


def test_a_real_server_samples_the_whole_distribution_whatever_its_own_defaults(served, fictional, tmp_path):
    import torch

    from engine.models.loading import load_model
    from engine.models.source import model_source
    from engine.models.tokenization import encode_prompt, load_tokenizer

    url, folder = served
    n, probe = 400, fictional.probes[0]
    facts, table = generations(EndpointJob(endpoint(url, folder), (probe,), Decoding(), n, 1, seed=3), tmp_path / "out")
    assert facts["asked"]["form"] == "generation_config"
    tokenizer = load_tokenizer(folder)
    with torch.no_grad():
        ids = torch.tensor([encode_prompt(tokenizer, probe.prompt)])
        probabilities = load_model(model_source(folder))(ids).logits[0, -1].double().softmax(-1)
    expected, found = Counter(), Counter(table["response"].to_pylist())
    for token, probability in enumerate(probabilities.tolist()):
        expected[tokenizer.decode([token], skip_special_tokens=True)] += probability * n
    common = [text for text, count in expected.items() if count >= 5]
    counts = [found[text] for text in common]
    means = [expected[text] for text in common]
    rest = n - sum(counts), n - sum(means)
    assert scipy.stats.chisquare([*counts, rest[0]], [*means, rest[1]]).pvalue > 1e-3
    assert len(found) > 50  # its own top-k is 50


@pytest.fixture
def server():
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def small(monkeypatch):
    """The embedded benchmark with four probes of each group."""
    from benchmarks import BENCHMARKS

    class Small(BENCHMARKS["fictional"]):
        @classmethod
        def load(cls, **options):
            benchmark = super().load(**options)
            groups = dict.fromkeys(probe.group for probe in benchmark.probes)
            benchmark.probes = [probe for group in groups for probe in benchmark.group(group)[:4]]
            return benchmark

    monkeypatch.setitem(BENCHMARKS, "fictional", Small)
    return Small.load(split="forget01")


def evaluate(server, store, capsys, *more):
    settings = ["benchmark.split=forget01", "sampling.n=8", "leak.k=[1,4]", "model.endpoint.retries=0", *more]
    arguments = ["--endpoint", server.url, "--model", "unlearned", "--retain", "retain", "--benchmark", "fictional"]
    arguments += ["--key-variable", KEY]
    sets = [part for each in settings for part in ("--set", each)]
    code = main(["evaluate", *arguments, "--store", str(store), "--json", *sets])
    out, err = capsys.readouterr()
    return code, json.loads(out) if code == 0 else err


def test_failures_behind_an_endpoint_are_counted_through_to_the_table_and_never_no_leak(
    server, small, tmp_path, capsys
):
    probes = small.group("forget")
    facts = {probe.prompt: probe.fact for probe in probes}
    broken = probes[0].prompt

    def reply(body, _):
        if asked(body) == broken and body["temperature"] > 0 and body["model"] == "unlearned":
            return 500
        leaks = body["model"] == "unlearned" and asked(body) in facts
        return [f"{text} {facts[asked(body)]}" for text in words(body)] if leaks else words(body)

    server.reply = reply
    code, found = evaluate(server, tmp_path / "store", capsys)
    assert code == 0
    unlearned, retain = found["models"]
    assert unlearned["failures"] == {"no response: HTTP 500": 8}
    assert unlearned["groups"]["forget"]["leak"]["4"][0] == 1.0  # of the prompts that were answered
    assert unlearned["excess"]["4"][0] == 1.0
    assert retain["failures"] == {}
    assert any("floor" in note for note in unlearned["notes"])
    results = json.loads(next((tmp_path / "store" / "runs").glob("*/results.json")).read_text())
    curve = next(each for each in results["models"][0]["curves"] if each["group"] == "forget")
    assert (curve["failed"], curve["prompts"], curve["floor"]) == (8, len(probes) - 1, None)

    requests = len(server.bodies)
    again = evaluate(server, tmp_path / "store", capsys)
    assert again[1]["models"] == found["models"]
    assert len(server.bodies) == requests  # everything was there
    key = os.environ[KEY]
    assert set(server.keys) == {f"Bearer {key}"}
    stored = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not [path for path in stored if key.encode() in path.read_bytes()]
    logs = os.environ["LEAKATK_RAY_TEMP"]
    assert subprocess.run(["grep", "-rqs", key, logs], check=False).returncode == 1


def test_a_model_behind_a_server_that_gives_way_to_another_way_to_ask_is_found_out(server, small, tmp_path, capsys):
    facts = {probe.prompt: probe.fact for probe in small.group("forget")}

    def reply(body, _):
        told = [fact for question, fact in facts.items() if asked(body) != question and asked(body).endswith(question)]
        return [f"{text} {told[0]}" for text in words(body)] if told and body["model"] == "unlearned" else words(body)

    server.reply = reply
    attack = "attacks=[{name: prompts, families: [paraphrase, few_shot]}]"
    code, found = evaluate(server, tmp_path / "store", capsys, attack)
    assert code == 0
    excess = {each["attack"]: each["excess"]["4"][0] for each in found["models"][0]["attacks"]}
    assert (excess["prompts-paraphrase"], excess["prompts-few_shot"]) == (0.0, 1.0)
    assert excess["prompts-joint"] == pytest.approx(1 - math.comb(8, 4) / math.comb(16, 4))  # 8 of 16 samples leak


def test_too_few_samples_for_the_largest_k_are_said_in_one_line(server, small, tmp_path, capsys):
    server.reply = lambda body, _: 400 if body.get("seed", 0) % 2 and body["max_tokens"] != 16 else words(body)[:1]
    code, line = evaluate(server, tmp_path / "store", capsys, "leak.k=[1,8]")
    assert code == 2
    assert "leak@8 of forget by exact_fact: no prompt has as many samples with a score" in line
    assert "HTTP 400" in line


def test_a_server_that_dies_midway_loses_the_units_in_flight_alone(server, tmp_path):
    probes = tuple(Probe(f"p{index}", f"question {index}", "r", "forget") for index in range(5))
    job = EndpointJob(endpoint(server.url, "m", retries=0, key_variable=KEY), probes, Decoding(), 2048, 4)
    requests_a_unit = 2048 // 32

    def dies(body, server):
        if len(server.bodies) > 2.5 * requests_a_unit:
            raise ConnectionError
        return words(body)

    server.reply = dies
    with pytest.raises(UserError, match="stopped answering"):
        generations(job, tmp_path / "out")
    finished = len(list((tmp_path / "out" / "units").glob("*.parquet")))
    assert finished == 2
    server.reply, server.bodies = words, []
    facts, table = generations(job, tmp_path / "out")
    assert {asked(body) for body in server.bodies if body["max_tokens"] == 4} == {
        "question 2",
        "question 3",
        "question 4",
    }
    assert facts["missing"] == {}
    undisturbed = generations(job, tmp_path / "undisturbed")[1]
    assert table.equals(undisturbed)


def test_a_worker_without_the_key_says_so(server, tmp_path, monkeypatch):
    monkeypatch.setenv("ONLY_THE_DRIVER_HAS_IT", "sk-other")
    probes = (Probe("p", "question", "r", "forget"),)
    job = EndpointJob(endpoint(server.url, "m", key_variable="ONLY_THE_DRIVER_HAS_IT"), probes, Decoding(), 2, 4)
    with pytest.raises(UserError, match="ONLY_THE_DRIVER_HAS_IT is not set where Ray's workers run"):
        generations(job, tmp_path / "out")
