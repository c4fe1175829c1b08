"""What a person sees of a small real run: the report and MLflow's compare view in a browser; and MLflow's server down,
killed in between and up again. Screenshots are kept in tests/artifacts."""

import base64
import http.server
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from engine.cli import main
from engine.reporting.html_report import write_report
from engine.reporting.results import read_results
from tests.made import make_run

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 180  # seconds: the machine may be busy
SMALL = {
    "name": "seen",
    "benchmark": {"name": "fictional", "split": "forget01"},
    "model": {"finetune": {"steps": 30, "batch_size": 32, "lr": 5e-3, "max_length": 64}},
    "methods": [
        {"name": "npo", "beta": 1.0, "train": {"steps": 2}},
        {"name": "rule", "base": {"name": "npo"}, "rounds": 1, "samples": 8, "steps": 2, "train": {"steps": 2}},
    ],
    "sampling": {"n": 8, "max_new_tokens": 12,
                 "decoding": [{"temperature": 1.0}, {"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.0}]},
    "leak": {"k": [1, 4, 8], "beams": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def uri():
    """Where a server will be, once it is started."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, uri):
    """A finished experiment whose MLflow server was down."""
    folder = tmp_path_factory.mktemp("see")
    (folder / "e.yaml").write_text(yaml.safe_dump(SMALL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        assert main(["run", str(folder / "e.yaml"), "--store", str(folder / "store"), "--json"]) == 0
    return next((folder / "store" / "runs").iterdir())


@pytest.fixture(scope="module")
def server(run_folder, uri):
    """`leakatk ui` on that port, over an empty store of its own."""
    store = run_folder.parents[2] / "served"
    store.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "engine", "ui", "--store", str(store), "--port", uri.rpartition(":")[2]]
    with (run_folder / ".ui.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        _wait(lambda: urllib.request.urlopen(f"{uri}/health", timeout=5).status == 200)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium here (apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    ARTIFACTS.mkdir(exist_ok=True)
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def _wait(true):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if true():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not within {PATIENCE} s")


def _opened(browser, address, **options):
    """A page at `address`, and what its console complains of."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(1000 * PATIENCE)
    complaints = []
    page.on("console", lambda message: complaints.append(message) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(error))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.goto(address)
    return page, complaints


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("desktop", {"viewport": {"width": 1100, "height": 900}}),
        ("dark", {"viewport": {"width": 1100, "height": 900}, "color_scheme": "dark"}),
        ("phone", {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}),
    ],
)
def test_the_report_reads_well_in_a_browser(browser, run_folder, name, options):
    page, complaints = _opened(browser, (run_folder / "report.html").as_uri(), **options)
    shown, hidden = ("narrow", "wide") if name == "phone" else ("wide", "narrow")
    assert page.locator(f"figure .{shown} svg:visible").count() >= 4  # two groups, excess, greedy
    assert page.locator(f"figure .{hidden} svg:visible").count() == 0
    assert page.locator("table td:visible", has_text="rule-npo").count() >= 3
    assert page.locator(".heats table").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red + green + blue < 200) == (name == "dark")
    page.screenshot(path=ARTIFACTS / f"report-{name}.png", full_page=True)
    if name == "desktop":
        assert page.pdf(path=ARTIFACTS / "report.pdf", format="A4").startswith(b"%PDF")
    assert complaints == []


def test_what_a_model_said_is_never_run(browser, tmp_path):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)> a fact of ash </style>"
    folder = make_run(tmp_path, "hostile", {("npo", "unlearned"): [[hostile] * 4]}, ["a fact of ash"])
    report = write_report(read_results(folder), folder, tmp_path)
    page, complaints = _opened(browser, report.as_uri())
    assert page.locator(".leaks", has_text="<script>alert(1)</script>").is_visible()
    assert page.locator(".leaks mark").all_inner_texts() == ["a fact of ash"]
    assert complaints == []


def test_an_experiment_whose_server_is_down_ends_well_and_says_so(run_folder, uri, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    store = run_folder.parents[1]
    assert main(["run", str(store.parent / "e.yaml"), "--store", str(store)]) == 0
    captured = capsys.readouterr()
    assert "`leakatk sync` records it" in captured.err
    assert "leak@8" in captured.out
    assert "\x1b" not in captured.out
    assert main(["sync", "--store", str(store)]) == 1


def _runs(uri):
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("leakatk")
    return client, client.search_runs([experiment.experiment_id]) if experiment else []


def test_a_sync_killed_in_between_is_recorded_exactly_once_by_the_next(run_folder, server, monkeypatch, tmp_path):
    store = run_folder.parents[1]
    command = [sys.executable, "-m", "engine", "sync", "--store", str(store)]
    killed = subprocess.Popen(command, env=os.environ | {"MLFLOW_TRACKING_URI": server})
    _wait(lambda: len(_runs(server)[1]) >= 2 or killed.poll() is not None)
    killed.kill()
    killed.wait()
    _, runs = _runs(server)
    assert "FINISHED" not in [run.info.status for run in runs if run.info.run_name == "seen"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    for _ in range(2):
        assert main(["sync", "--store", str(store)]) == 0
    away = shutil.copytree(run_folder, tmp_path / "seen", ignore=shutil.ignore_patterns("mlflow.json", ".*"))
    assert main(["sync", str(away), "--store", str(store)]) == 0  # the same results from elsewhere

    client, runs = _runs(server)
    assert sorted(run.info.run_name for run in runs) == ["npo", "retain", "round 1", "rule-npo", "seen", "target"]
    parent = next(run for run in runs if run.info.run_name == "seen")
    npo = next(run for run in runs if run.info.run_name == "npo")
    assert parent.info.status == "FINISHED"
    assert npo.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert npo.data.tags["leakatk.split"] == "forget01"
    assert npo.data.tags["leakatk.decoding"] == "T1-p1"
    assert {each.dataset.name for each in npo.inputs.dataset_inputs} == {
        "fictional-forget",
        "fictional-retain",
        "fictional-probes",
    }
    found = client.get_metric_history(npo.info.run_id, "leak_at_k.exact_fact")
    curve = next(model for model in read_results(run_folder).models if model.name == "npo").curves[0]
    assert [(point.step, point.value) for point in found] == list(zip(curve.k, curve.leak, strict=True))
    assert {each.path for each in client.list_artifacts(npo.info.run_id)} >= {"model"}


@pytest.fixture
def leaking(server, tmp_path, monkeypatch):
    """A run made from texts, on the server: npo leaks the first of two facts in half of its samples."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    npo, retain = [["no", "a fact of ash"] * 4, ["no"] * 8], [["no"] * 8] * 2
    models = {("npo", "unlearned"): npo, ("retain", "retain"): retain}
    folder = make_run(tmp_path, "leaking", models, ["a fact of ash", "another fact"], k=(1, 4, 8))
    assert main(["sync", str(folder), "--store", str(tmp_path)]) == 0
    return folder


def test_mlflows_compare_view_draws_leak_at_k_against_k(browser, run_folder, leaking, server):
    assert main(["sync", "--store", str(run_folder.parents[1])]) == 0
    chosen = [run for run in _runs(server)[1] if run.data.tags["leakatk.kind"] in ("target", "retain", "unlearned")]
    assert len(chosen) == 6
    asked = {"runs": json.dumps([run.info.run_id for run in chosen]), "metric": '"leak_at_k.exact_fact"'}
    asked |= {"experiments": json.dumps([chosen[0].info.experiment_id]), "x_axis": "step"}
    asked |= {"plot_metric_keys": '["leak_at_k.exact_fact"]'}
    page, complaints = _opened(
        browser, f"{server}/#/metric?{urllib.parse.urlencode(asked)}", viewport={"width": 1400, "height": 900}
    )
    page.locator(".scatterlayer .js-line").first.wait_for(state="attached")
    for run in chosen:
        page.get_by_text(f"{run.info.run_name} (leak_at_k.exact_fact)").first.wait_for()
    page.locator("table td", has_text="0.5 (step=8)").first.wait_for()
    page.screenshot(path=ARTIFACTS / "mlflow-compare.png")
    # MLflow's page asks for the user of a server that has none
    assert [each for each in complaints if "users/current" not in str(getattr(each, "location", each))] == []


def test_the_samples_that_leak_most_are_a_table_in_mlflow(leaking, server, tmp_path):
    client, runs = _runs(server)
    fingerprint = read_results(leaking).fingerprint
    npo = next(each for each in runs if each.data.tags["leakatk.fingerprint"] == fingerprint
               and each.info.run_name == "npo")  # fmt: skip
    table = json.loads(Path(client.download_artifacts(npo.info.run_id, "samples.json", tmp_path)).read_text())
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert (row["highest-scoring sample"], row["score"], row["mean score"]) == ("a fact of ash", 1.0, 0.5)
    assert row["retain model's"] == "no"
    assert len(table["data"]) == 1  # the other prompt never leaked
    pointer = Path(client.download_artifacts(npo.info.run_id, "model/pointer.json", tmp_path))
    assert json.loads(pointer.read_text())["path"] == read_results(leaking).models[0].stages["model"]


def test_user_and_password_come_from_the_environment(run_folder, monkeypatch, capsys):
    seen = []

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers["Authorization"])
            self.send_response(401)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_):
            pass

    refusing = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=refusing.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{refusing.server_port}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bob")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert main(["sync", str(run_folder), "--store", str(run_folder.parents[1])]) == 1
    refusing.shutdown()
    assert seen[0] == "Basic " + base64.b64encode(b"bob:secret").decode()
    captured = capsys.readouterr()
    assert "401" in captured.err
    assert "secret" not in captured.out + captured.err + (run_folder / "mlflow.json").read_text()
