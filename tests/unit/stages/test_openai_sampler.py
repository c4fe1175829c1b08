"""What a server does not answer is a missing sample with its reason; what it does answer is a sample of the model."""

import dataclasses
import json
import time

import pytest

from benchmarks.base import Decoding
from engine.errors import UserError
from engine.stages.openai_sampler import MANNERS, Conversation, Manner, request_seed
from engine.stages.sample_endpoint import EndpointJob, endpoint
from tests.chat_server import ChatServer, asked, words

KEY = "sk-secret-0123456789"
PROMPTS = [(f"p{index}", f"question {index}") for index in range(4)]
MANY = Manner(many=True)
SAMPLED = Decoding()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.002)
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: None)  # slow, and this is plain HTTP
    server = ChatServer()
    yield server
    server.close()


def job(server, manner=MANNERS[0], decoding=SAMPLED, **changes):
    limits = {"concurrency": 3, "retries": 2, "timeout": 5.0}
    limits |= {name: changes.pop(name) for name in list(changes) if name in limits}
    made = EndpointJob(endpoint(server.url, "m", **limits), (), decoding, 5, max_new_tokens=7, seed=1, manner=manner)
    return dataclasses.replace(made, **changes)


def answers(made, prompts=PROMPTS, n=5):
    with Conversation(made) as conversation:
        return conversation.answers(prompts, n)


def manner(made):
    with Conversation(made) as conversation:
        return conversation.find_manner()


def fails_for(prompt, how):
    return lambda body, server: how if asked(body) == prompt else words(body)


@pytest.mark.parametrize("how", [MANNERS[0], MANY])
def test_every_sample_of_every_prompt_is_answered_in_order(server, how):
    found = answers(job(server, how))
    assert [each.text.rsplit(" ", 1)[0] for each in found] == [prompt for _, prompt in PROMPTS for _ in range(5)]
    assert len({each.text for each in found}) == 20
    assert sum(each.tokens for each in found) == 60
    assert len(server.bodies) == (4 if how.many else 20)


def test_requests_have_seeds_of_their_own_that_come_again(server):
    first, again = answers(job(server)), answers(job(server, concurrency=1))
    seeds = [body["seed"] for body in server.bodies]
    assert len(set(seeds[:20])) == 20
    assert (
        set(seeds[:20])
        == set(seeds[20:])
        == {request_seed(1, key, sample) for key, _ in PROMPTS for sample in range(5)}
    )
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert first == again


def test_no_more_requests_run_at_once_than_allowed(server):
    def slow(body, server):
        time.sleep(0.02)
        return words(body)

    server.reply = slow
    answers(job(server, concurrency=3))
    assert server.most_running == 3


def test_a_chat_server_gets_messages_and_the_whole_distribution(server):
    answers(job(server, system="be brief"), PROMPTS[:1], 1)
    (body,) = server.bodies
    assert server.paths == ["/v1/chat/completions"]
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "question 0"}]
    wanted = {"model": "m", "max_tokens": 7, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
    assert body | wanted | {"repetition_penalty": 1.0} == body


def test_a_plain_template_goes_to_completions_in_the_plain_form(server):
    (found,) = answers(job(server, chat=False), PROMPTS[:1], 1)
    assert server.paths == ["/v1/completions"]
    assert server.bodies[0]["prompt"] == "Question: question 0\nAnswer:"
    assert found.text.startswith("question 0 ")


# How a server is made to sample


def test_a_server_that_takes_all_and_gives_different_choices_is_asked_for_many(server):
    assert manner(job(server)) == (MANY, [])
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "several",
    [
        lambda body: [words(body)[0]] * body["n"],  # the same text n times: one seed for all
        lambda body: words(body)[:1],  # n is passed over
        lambda body: 400,
        lambda body: 422,
    ],
)
def test_a_server_that_cannot_give_several_different_choices_is_asked_for_one(server, several):
    server.reply = lambda body, _: several(body) if "n" in body else words(body)
    assert manner(job(server)) == (MANNERS[0], [])


def test_a_server_that_refuses_unknown_parameters_is_asked_by_a_generation_config(server):
    server.reply = lambda body, _: 422 if "top_k" in body or "n" in body else words(body)
    found, notes = manner(job(server, decoding=Decoding(temperature=0.8, top_p=0.9, top_k=7)))
    assert (found, notes) == (Manner("generation_config"), [])
    answers(job(server, found, Decoding(temperature=0.8, top_p=0.9, top_k=7)), PROMPTS[:1], 1)
    wanted = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 7, "max_new_tokens": 7}
    assert wanted.items() <= json.loads(server.bodies[-1]["generation_config"]).items()


def test_a_server_that_takes_openais_parameters_alone_is_asked_so_and_it_is_said(server):
    extra = {"top_k", "generation_config", "seed"}
    server.reply = lambda body, _: 400 if extra & set(body) else [f"{len(server.bodies)}"]
    found, notes = manner(job(server))
    assert found == Manner("plain", seed=False)
    assert "may cut the distribution" in notes[0]
    assert "no seed" in notes[1]
    with pytest.raises(UserError, match="takes no top_k"):
        manner(job(server, decoding=Decoding(top_k=5)))


def test_a_server_that_never_samples_is_told_of(server):
    server.reply = lambda body, _: ["always this"] * body.get("n", 1)
    assert "does it sample at all?" in manner(job(server))[1][-1]


def test_greedy_answers_need_not_differ(server):
    server.reply = lambda body, _: ["always this"]
    assert manner(job(server, decoding=Decoding(temperature=0.0))) == (MANNERS[0], [])
    assert server.bodies[0]["temperature"] == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_server_that_refuses_ends_the_work_without_telling_the_key(server, status):
    server.reply = lambda body, _: status
    with pytest.raises(UserError, match=f"HTTP {status}") as error:
        manner(job(server))
    assert server.keys[0] == f"Bearer {KEY}"
    assert KEY not in f"{error.value} {error.value.__cause__}"
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_no_server_is_the_users_mistake(server):
    made = job(server, retries=0)
    server.close()
    server.http.server_close = server.http.shutdown = lambda: None
    with pytest.raises(UserError, match="does not answer"):
        manner(made)


@pytest.mark.parametrize(
    "url", ["http://user:secret@host/v1", "http://secret@host/v1", "http://host/v1?key=secret", "http://host/v1#secret"]
)
def test_credentials_in_the_url_are_refused_and_not_repeated(url):
    with pytest.raises(UserError, match="without user, password or query") as error:
        endpoint(url, "m")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["host:80/v1", "ftp://host", "http://", "http://host:x/v1", ""])
def test_what_is_not_a_servers_url_is_refused(url):
    with pytest.raises(UserError, match="not a server's URL"):
        endpoint(url, "m")


def test_the_key_is_read_from_the_variable_that_is_named(server, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "sk-other")
    made = job(server)
    answers(dataclasses.replace(made, endpoint=endpoint(server.url, "m", key_variable="OTHER_KEY")), PROMPTS[:1], 1)
    assert server.keys == ["Bearer sk-other"]
    monkeypatch.delenv("OTHER_KEY")
    missing = dataclasses.replace(made, endpoint=endpoint(server.url, "m", key_variable="OTHER_KEY"), keyed=True)
    with pytest.raises(UserError, match="OTHER_KEY is not set where"):
        answers(missing)


# Faults


@pytest.mark.parametrize(
    ("failing", "why"),
    [
        (500, "HTTP 500"),
        (400, "HTTP 400"),
        (429, "HTTP 429"),
        (b"{broken", "malformed reply"),
        (b'{"choices": 3}', "malformed reply"),
        (b'"text"', "malformed reply"),
        ([], "malformed reply"),
        ([None], "no text in the reply"),
        (["FILTERED"], "content filter"),
    ],
)
def test_what_fails_is_missing_with_its_reason_and_the_rest_is_there(server, failing, why):
    server.reply = fails_for("question 2", failing)
    found = answers(job(server, retries=1))
    assert [each.failure for each in found] == [None] * 10 + [why] * 5 + [None] * 5
    assert all(each.text is None and each.finish is None for each in found[10:15])


def test_an_empty_text_is_an_answer(server):
    server.reply = lambda body, _: [""]
    (found,) = answers(job(server), PROMPTS[:1], 1)
    assert (found.text, found.failure) == ("", None)


def test_a_request_that_takes_too_long_is_missing(server):
    def slow(body, _):
        if asked(body) == "question 1":
            time.sleep(0.4)
        return words(body)

    server.reply = slow
    found = answers(job(server, timeout=0.2, retries=0), n=1)
    assert [each.failure for each in found] == [None, "timeout", None, None]


def test_passing_errors_are_ridden_out(server):
    server.reply = lambda body, server: 500 if len(server.bodies) % 3 else words(body)
    assert not any(each.failure for each in answers(job(server, retries=4, concurrency=1)))


def test_a_reply_that_was_broken_once_is_asked_for_again(server):
    server.reply = lambda body, server: b"{broken" if len(server.bodies) < 4 else words(body)
    found = answers(job(server))
    assert not any(each.failure for each in found)
    assert len(server.bodies) == 23


def test_a_rate_limit_is_waited_for_as_long_as_the_server_says(server):
    limited = (429, {"Retry-After": "0.3"})
    server.reply = lambda body, server: limited if len(server.bodies) == 1 else words(body)
    (found,) = answers(job(server), PROMPTS[:1], 1)
    assert found.failure is None
    assert server.times[1] - server.times[0] >= 0.3


def test_choices_that_were_not_given_are_asked_for_singly(server):
    server.reply = lambda body, _: words(body)[:2]
    found = answers(job(server, MANY), PROMPTS[:1], 5)
    assert len({each.text for each in found}) == 5
    assert [body.get("n", 1) for body in server.bodies] == [5, 1, 1, 1]
    seeds = [body["seed"] for body in server.bodies[1:]]
    assert seeds == [request_seed(1, "p0", sample) for sample in (2, 3, 4)]


def test_a_server_that_refuses_several_choices_midway_is_asked_singly(server):
    server.reply = lambda body, _: 400 if "n" in body else words(body)
    assert not any(each.failure for each in answers(job(server, MANY)))


def test_a_failed_request_for_several_fails_for_none_of_them_when_asked_again(server):
    server.reply = lambda body, server: 500 if body.get("n", 1) > 1 else words(body)
    assert not any(each.failure for each in answers(job(server, MANY, retries=0)))


def test_a_server_that_dies_midway_ends_the_work_soon(server):
    def dies(body, server):
        if len(server.bodies) > 10:
            raise ConnectionError
        return words(body)

    server.reply = dies
    clock = time.monotonic()
    with pytest.raises(UserError, match=r"stopped answering \(connection lost\)"):
        answers(job(server, retries=1), n=500)
    assert len(server.bodies) < 100
    assert time.monotonic() - clock < 5


def test_a_key_that_is_withdrawn_midway_ends_the_work(server):
    server.reply = lambda body, server: 401 if len(server.bodies) > 10 else words(body)
    with pytest.raises(UserError, match="HTTP 401"):
        answers(job(server))


def refusing(server, refused):
    """Let the server answer `refused(body)`, a message, by HTTP 400, and everything else as it does."""

    def reply(body, server):
        message = refused(body)
        return words(body) if message is None else (400, {}, message)

    server.reply = reply


def test_a_server_that_answers_several_samples_by_an_error_of_its_own_is_asked_one_by_one(server):
    server.reply = lambda body, server: 500 if body.get("n", 1) > 1 else words(body)
    how, _ = manner(job(server, retries=0))
    assert not how.many
    found = answers(job(server, how))
    assert all(each.failure is None for each in found)
    assert all("n" not in body for body in server.bodies[-20:])


def test_a_server_that_answers_nothing_but_errors_is_one_line(server):
    server.reply = lambda body, server: 500
    with pytest.raises(UserError, match=r"does not answer \(HTTP 500") as caught:
        manner(job(server, retries=0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "refuses", "wanted"),
    [
        (
            "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            lambda body: "max_tokens" in body,
            lambda body: body["max_completion_tokens"] and "max_tokens" not in body,
        ),
        (
            "Unsupported value: 'temperature' does not support 1.0 with this model.",
            lambda body: "temperature" in body,
            lambda body: "temperature" not in body,
        ),
        ("Unknown parameter: 'top_p'.", lambda body: "top_p" in body, lambda body: "top_p" not in body),
        ("seed is not supported", lambda body: "seed" in body, lambda body: "seed" not in body),
    ],
)
def test_what_the_server_asks_for_is_what_it_gets(server, message, refuses, wanted):
    refusing(server, lambda body: message if refuses(body) else None)
    how, _ = manner(job(server))
    server.bodies.clear()
    assert all(each.failure is None for each in answers(job(server, how)))
    assert all(wanted(body) for body in server.bodies)


def test_a_temperature_that_is_refused_is_not_left_out_where_it_decides(server):
    refusing(server, lambda body: "'temperature' does not support 0.7" if "temperature" in body else None)
    with pytest.raises(UserError, match="refuses every request"):
        manner(job(server, decoding=Decoding(temperature=0.7)))


def test_the_servers_own_words_are_shown_without_the_key(server):
    refusing(server, lambda body: f"model is\nnot loaded; you sent {KEY} and {KEY[:9]}***6789")
    with pytest.raises(UserError, match="model is not loaded; you sent") as caught:
        manner(job(server))
    assert KEY[:7] not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "text", "failure"),
    [
        ({"content": None, "reasoning_content": "It was Ada."}, None, "thoughts without an answer"),
        ({"content": "", "reasoning": "It was Ada."}, None, "thoughts without an answer"),
        ({"content": "<think>\nIt was Ada."}, None, "thoughts without an answer"),
        ({"content": "<think>\nIt was Ada.\n</think>\n\nAda"}, "Ada", None),
        ({"content": "Ada", "reasoning_content": "It was Ada."}, "Ada", None),
        ({"content": ""}, "", None),  # the model said nothing
        ({"content": None, "refusal": "No."}, "No.", None),
    ],
)
def test_thoughts_are_no_answer(server, message, text, failure):
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", **message}}
    reply = {"id": "x", "object": "o", "created": 0, "model": "m", "choices": [choice], "usage": None}
    server.reply = lambda body, server: json.dumps(reply).encode()
    (found,) = answers(job(server), PROMPTS[:1], n=1)
    assert (found.text, found.failure) == (text, failure)


def test_template_options_go_to_the_server(server):
    answers(job(server, template_options={"enable_thinking": False}), PROMPTS[:1], n=1)
    assert server.bodies[-1]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_server_that_thinks_before_each_answer_is_known_to_sample(server):
    def thinks(body, server):
        message = {"role": "assistant", "content": None, "reasoning_content": f"I wonder {body['seed']}"}
        choice = {"index": 0, "finish_reason": "length", "message": message}
        return json.dumps({"id": "x", "object": "o", "created": 0, "model": "m", "choices": [choice]}).encode()

    server.reply = thinks
    assert manner(job(server)) == (MANNERS[0], [])
