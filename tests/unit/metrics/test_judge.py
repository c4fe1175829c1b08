"""The judge's labels reach their own items; what the judge did not say is a failure, never a zero."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from engine.cli import main
from engine.errors import UserError
from engine.metrics import Failed, score, score_counted
from engine.metrics.judge import judge, parse_labels
from engine.reporting.generations import Generations, write_generations

KEY = "sk-secret-0123456789"


class Server:
    """A chat server on this machine: `reply(items, body)` gives the message's text, or a status to answer with.

    As it comes, it labels a response 1 where it holds the reference.
    """

    def __init__(self):
        self.bodies, self.keys = [], []
        self.lock = threading.Lock()
        self.reply = lambda items, body: labels(items)
        self.message = {}
        self.finish = "stop"
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.bodies.append(body)
                    server.keys.append(self.headers["Authorization"])
                    said = server.reply(json.loads(body["messages"][1]["content"]), body)
                status, said = (said, "") if isinstance(said, int) else (200, said)
                message = {"role": "assistant", "content": said} | server.message
                choice = {"index": 0, "message": message, "finish_reason": server.finish}
                reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                if status != 200:
                    reply = {"error": {"message": f"wrong key {self.headers['Authorization']}"}}
                sent = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def items_asked(self):
        return [item for body in self.bodies for item in json.loads(body["messages"][1]["content"])]


def labels(items, order=1):
    """A reply that labels each item 1 where the response holds the reference, in any order of entries."""
    entries = [{"id": item["id"], "label": int(item["reference"] in item["response"])} for item in items]
    return json.dumps({"labels": entries[::order]})


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.002)
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: None)  # slow, and this is plain HTTP
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


RESPONSES = ["it is red", "blue", "red red", "none", "green"]


def ask(server, tmp_path, responses=RESPONSES, reference="red", **options):
    count = len(responses)
    options = {"model": "m", "endpoint": server.url, "cache": str(tmp_path / "cache.sqlite"), "retries": 2} | options
    return judge(responses, [reference] * count, ["what colour?"] * count, **options)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_each_response_gets_its_own_label(server, tmp_path, batch_size):
    server.reply = lambda items, body: labels(items, order=-1)  # the judge may answer in any order
    assert ask(server, tmp_path, batch_size=batch_size) == [1, 0, 1, 0, 0]
    assert len(server.bodies) == -(-5 // batch_size)


def test_the_judge_sees_question_reference_and_response(server, tmp_path):
    ask(server, tmp_path, ["it is red"])
    (item,) = server.items_asked()
    assert (item["question"], item["reference"], item["response"]) == ("what colour?", "red", "it is red")
    assert server.bodies[0]["response_format"]["type"] == "json_schema"
    assert server.bodies[0]["temperature"] == 0


def test_graded_labels_become_scores_from_nought_to_one(server, tmp_path):
    server.reply = lambda items, body: json.dumps(
        {"labels": [{"id": item["id"], "label": {"a": 1, "b": 2, "c": 3}[item["response"]]} for item in items]}
    )
    assert ask(server, tmp_path, ["a", "b", "c"], rubric="graded") == [0.0, 0.5, 1.0]


def test_the_same_item_is_asked_once_and_then_kept_on_disk(server, tmp_path):
    assert ask(server, tmp_path, ["red", "red", "blue"]) == [1, 1, 0]
    assert len(server.items_asked()) == 2
    assert ask(server, tmp_path, ["blue", "red", "new"]) == [0, 1, 0]
    assert [item["response"] for item in server.items_asked()[2:]] == ["new"]


@pytest.mark.parametrize("change", [{"model": "other"}, {"rubric": "graded"}, {"reference": "blue"}])
def test_a_kept_label_is_not_taken_for_another_question(server, tmp_path, change):
    ask(server, tmp_path, ["x"])
    ask(server, tmp_path, ["x"], **change)
    assert len(server.bodies) >= 2


def test_a_blank_response_reveals_nothing_and_costs_nothing(server, tmp_path):
    assert ask(server, tmp_path, ["", " \n"]) == [0, 0]
    assert server.bodies == []


def test_an_item_left_out_is_asked_again(server, tmp_path):
    server.reply = lambda items, body: labels(items[:1])
    assert ask(server, tmp_path, ["red", "blue"]) == [1, 0]
    assert [item["response"] for item in server.items_asked()] == ["red", "blue", "blue"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("I cannot help with that.", "reply is not the JSON asked for"),
        ('{"labels": []}', "no label for the item"),
        ('{"labels": [{"id": "ID", "label": 7}]}', "label not valid"),
        ('{"labels": [{"id": "ID", "label": "1"}]}', "label not valid"),
        ('{"labels": [{"id": "ID", "label": true}]}', "label not valid"),
        ('{"labels": [{"id": "ID", "label": 0}, {"id": "ID", "label": 1}]}', "label not valid"),
        ('{"labels": [{"id": "another", "label": 1}]}', "no label for the item"),
        ("", "reply is not the JSON asked for"),
        (500, "HTTP 500"),
        (429, "HTTP 429"),
    ],
)
def test_an_answer_without_a_label_is_a_failure_and_not_kept(server, tmp_path, reply, reason):
    server.reply = lambda items, body: reply if isinstance(reply, int) else reply.replace("ID", items[0]["id"])
    assert ask(server, tmp_path, ["red"], attempts=2, retries=1) == [Failed(f"judge: {reason}")]
    assert len(server.bodies) == (4 if isinstance(reply, int) else 2)
    server.reply = lambda items, body: labels(items)
    assert ask(server, tmp_path, ["red"]) == [1]


def test_refusals_and_cut_replies_are_failures(server, tmp_path):
    server.message = {"refusal": "no"}
    assert ask(server, tmp_path, ["red"]) == [Failed("judge: refused")]
    server.message, server.finish = {}, "length"
    server.reply = lambda items, body: '{"labels": [{"id"'
    assert ask(server, tmp_path, ["red"]) == [Failed("judge: reply cut off")]


def test_a_passing_error_of_the_server_is_ridden_out(server, tmp_path):
    server.reply = lambda items, body: 503 if len(server.bodies) < 3 else labels(items)
    assert ask(server, tmp_path) == [1, 0, 1, 0, 0]


def test_a_server_that_knows_no_schema_and_no_temperature_is_asked_plainly(server, tmp_path):
    server.reply = lambda items, body: 400 if {"response_format", "temperature"} & set(body) else labels(items)
    assert ask(server, tmp_path, batch_size=1, concurrency=1) == [1, 0, 1, 0, 0]
    assert len(server.bodies) == 2 + 5  # found out once


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_ends_the_work_without_telling_the_key(server, tmp_path, status):
    server.reply = lambda items, body: status
    with pytest.raises(UserError, match=f"HTTP {status}") as error:
        ask(server, tmp_path)
    assert len(server.bodies) == 1
    assert server.keys == [f"Bearer {KEY}"]
    chain = [error.value, error.value.__cause__]
    assert all(KEY not in str(each) for each in chain)
    assert error.value.__suppress_context__


def test_no_server_is_the_users_mistake(server, tmp_path):
    server.http.server_close()
    server.http.shutdown()
    with pytest.raises(UserError, match="no server at"):
        ask(server, tmp_path, endpoint="http://127.0.0.1:9/v1", retries=0)


def test_neither_key_nor_endpoint_is_the_users_mistake(monkeypatch, tmp_path):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="set OPENAI_API_KEY"):
        judge(["a"], ["b"], ["c"], model="m", cache=str(tmp_path / "c"))


def test_text_around_the_reply_is_passed_over():
    assert parse_labels('Sure:\n```json\n{"labels": [{"id": "a", "label": 1}]}\n```', {"a"}, {0, 1})[0] == {"a": 1}


def test_scores_are_three_valued(server, tmp_path):
    server.reply = lambda items, body: labels([item for item in items if item["response"] != "bad"])
    options = {"model": "m", "endpoint": server.url, "cache": str(tmp_path / "c.sqlite")}
    found = score_counted("judge", ["red", None, "bad", "blue"], ["red"] * 4, ["q"] * 4, **options)
    assert found.scores == [1.0, None, None, 0.0]
    assert found.failures == {"no response": 1, "judge: no label for the item": 1}


def test_the_score_command_judges_a_file(server, tmp_path, capsys):
    write_generations(tmp_path / "g.jsonl", [Generations("a", "q", "red", ["red", "bad", "blue"])])
    server.reply = lambda items, body: labels([item for item in items if item["response"] != "bad"])
    options = [f"endpoint={server.url}", "model=m", f"cache={tmp_path / 'c.sqlite'}"]
    arguments = [part for each in options for part in ("--option", each)]
    out = tmp_path / "s.jsonl"
    assert main(["score", str(tmp_path / "g.jsonl"), "--metric", "judge", "--out", str(out), *arguments]) == 0
    assert json.loads(out.read_text()) == {"prompt_id": "a", "scores": [1.0, None, 0.0]}
    captured = capsys.readouterr()
    assert KEY not in captured.out + captured.err
    assert "1 samples failed: judge: no label" in captured.err


@pytest.mark.parametrize("value", [0, "many"])
def test_an_option_that_must_be_a_number_is_checked(value):
    with pytest.raises(UserError, match="batch_size must be a positive number"):
        score("judge", ["a"], ["b"], model="m", batch_size=value)


def test_a_judge_without_a_model_is_the_users_mistake():
    with pytest.raises(UserError, match="needs model"):
        score("judge", ["a"], ["b"])


def test_the_key_is_not_in_the_cache(server, tmp_path):
    ask(server, tmp_path, ["red"])
    with contextlib.closing((tmp_path / "cache.sqlite").open("rb")) as file:
        assert KEY.encode() not in file.read()


def test_a_judge_that_thinks_aloud_is_read_after_its_thoughts(server, tmp_path):
    server.reply = lambda items, body: '<think>\n{"labels": [] } or not?\n</think>\n\n' + labels(items)
    assert ask(server, tmp_path) == [1, 0, 1, 0, 0]
