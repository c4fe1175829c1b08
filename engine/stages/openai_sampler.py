"""The conversation with an OpenAI-compatible server: requests go out side by side, an Answer a sample comes back.

Servers bring sampling defaults of their own (a top-k of 40, the model's generation config, greedy decoding), and some
repeat themselves where n > 1: `find_manner` tries how this one is made to sample from the full distribution. What was
not answered is an Answer with the reason, never an empty text. Knows nothing of stages or files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.base import Decoding
from engine.errors import UserError
from engine.models import openai_client
from engine.models.tokenization import FORMS
from engine.stages.openai_replies import OF_THE_MODEL, Answer, read_reply

if TYPE_CHECKING:
    from engine.stages.sample_endpoint import EndpointJob

SAMPLES_A_REQUEST = 32  # servers limit n
PROBE_PROMPT = "Write any words that come to your mind."
PROBE_SAMPLES = 4
PROBE_TOKENS = 16


class Manner(NamedTuple):
    """How a server is asked. form: the parameters that switch its own truncation off; seed: whether it takes seeds;
    many: whether n > 1 in one request gives samples that differ; limit: its name for the most tokens of an answer;
    unsaid: parameters that it refuses, and that may be left out where they are at their default, 1."""

    form: str = "parameters"
    seed: bool = True
    many: bool = False
    limit: str = "max_tokens"
    unsaid: tuple[str, ...] = ()

    def adapted(self, words: str, decoding: Decoding) -> Manner | None:
        """Another manner that a server wants which refused this one with these words; None where they name none."""

        def named(parameter: str) -> bool:
            return re.search(rf"\b{parameter}\b", words) is not None

        if self.limit == "max_tokens" and named("max_completion_tokens"):
            return self._replace(limit="max_completion_tokens")
        for parameter, value in (("temperature", decoding.temperature), ("top_p", decoding.top_p)):
            if named(parameter) and value == 1 and parameter not in self.unsaid:
                return self._replace(unsaid=(*self.unsaid, parameter))
        return self._replace(seed=False) if self.seed and named("seed") else None


MANNERS = (Manner(), Manner("generation_config"), Manner("plain"), Manner("plain", seed=False))


class Request(NamedTuple):
    """Samples first .. first + samples - 1 of a prompt."""

    prompt_id: str
    prompt: str
    first: int
    samples: int

    def singly(self) -> list[Request]:
        return [self._replace(first=self.first + index, samples=1) for index in range(self.samples)]


class Conversation:
    """One job's requests to its server. A context manager, which closes the connections."""

    def __init__(self, job: EndpointJob) -> None:
        endpoint = job.endpoint
        if job.keyed and not os.environ.get(endpoint.key_variable):
            raise UserError(f"{endpoint.key_variable} is not set where Ray's workers run: start Ray with it")
        self.job, self.manner = job, job.manner
        self.client = openai_client.connect(endpoint.url, endpoint.key_variable, endpoint.retries, endpoint.timeout)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def answers(self, prompts: Iterable[tuple[str, str]], n: int) -> list[Answer]:
        """n Answers to each (prompt id, prompt), in order; what failed is asked for once more when all else is done.

        UserError where the server refuses whatever is asked, or has stopped answering.
        """
        most = SAMPLES_A_REQUEST if self.manner.many else 1
        requests = [Request(*each, first, min(most, n - first)) for each in prompts for first in range(0, n, most)]
        samples = [each for request in requests for each in request.singly()]
        found = list(self._ask_all(requests))
        again = [index for index, answer in enumerate(found) if _may_pass(answer.failure)]
        for index, answer in zip(again, self._ask_all([samples[index] for index in again]), strict=True):
            found[index] = answer
        if any(_may_pass(found[index].failure) for index in again):
            self.check_alive()
        return found

    def find_manner(self) -> tuple[Manner, list[str]]:
        """The first manner in which the server samples, and what a reader of the results must know about it.

        UserError where the server is not there, or refuses the key, the model or every manner.
        """
        accepted: list[Manner] = []
        refusal = ""
        waiting = list(MANNERS)
        while waiting:
            manner = waiting.pop(0)
            try:
                varies, many = self._tried(manner)
            except _OtherFormError as error:
                refusal = refusal or str(error)  # of the first: what is asked for in it is what is wanted
                adapted = manner.adapted(error.words, self.job.decoding)
                waiting = [adapted, *waiting] if adapted is not None else waiting
                continue
            if varies:
                return manner._replace(many=many), _notes(manner)
            accepted.append(manner)
        if not accepted:
            raise UserError(f"{self._where} refuses every request ({refusal}); check the model's name and the URL")
        note = f"the server gave one answer to {PROBE_SAMPLES} seeds at temperature 1: does it sample at all?"
        return accepted[0], [*_notes(accepted[0]), note]

    def check_alive(self) -> None:
        """UserError unless the server answers a small request."""
        (answer,) = self._ask(_probe(0, 1), PROBE_TOKENS)
        if _may_pass(answer.failure):
            raise UserError(
                f"{self._where} has stopped answering ({answer.failure}); finished units are kept: see to the server, "
                "then run the same command again"
            )

    def _tried(self, manner: Manner) -> tuple[bool, bool]:
        """Whether samples differ (greedy ones need not), and whether they do within one request of several."""
        self.manner = manner
        if self.job.decoding.temperature == 0:
            self._first(_probe(0, 1))
            return True, False
        try:
            together = {answer.text or answer.thought for answer in self._first(_probe(0, PROBE_SAMPLES))}
        except (_OtherFormError, _NoAnswerError):  # some answer any n > 1 with an error of their own
            together = set()
        if len(together) > 1:
            return True, True
        apart = {
            answer.text or answer.thought for seed in range(PROBE_SAMPLES) for answer in self._first(_probe(seed, 1))
        }
        return len(apart) > 1, False

    def _first(self, request: Request) -> list[Answer]:
        """Answers to a first request. Raises UserError where the server refuses all, _OtherFormError where it may take
        another form, _NoAnswerError, a UserError, where it does not answer."""
        import openai

        probed = Decoding() if self.job.decoding.temperature else self.job.decoding
        try:
            return self._ask_once(request, PROBE_TOKENS, probed, retries=1 if request.samples > 1 else None)
        except (openai.OpenAIError, ValueError) as error:
            why = openai_client.reason(error)
            words = openai_client.server_words(error, self.job.endpoint.key_variable)
            if openai_client.refuses_form(error):
                raise _OtherFormError(_with_words(why, words), words) from None
            if openai_client.refuses_all(error):
                raise self._refused(error) from None
            failure = f"{self._where} does not answer ({_with_words(why, words)}); check the URL and the server"
            raise _NoAnswerError(failure) from None

    def _ask_all(self, requests: list[Request]) -> Iterator[Answer]:
        """The Answers to all requests in order, as many at once as the endpoint allows."""
        concurrency = self.job.endpoint.concurrency
        failed = 0
        with ThreadPoolExecutor(concurrency) as pool:
            try:
                for answers in pool.map(lambda request: self._ask(request, self.job.max_new_tokens), requests):
                    failed = failed + 1 if all(_may_pass(answer.failure) for answer in answers) else 0
                    if failed == 2 * concurrency:  # in a row: do not wait for the retries of all the others
                        self.check_alive()
                        failed = 0
                    yield from answers
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, request: Request, max_tokens: int) -> list[Answer]:
        """request.samples Answers; where the server gives fewer at once, the rest one by one."""
        import openai

        try:
            answers = self._ask_once(request, max_tokens, self.job.decoding)
        except (openai.OpenAIError, ValueError) as error:
            if openai_client.refuses_all(error):
                raise self._refused(error) from None
            fewer = request.samples > 1 and openai_client.refuses_form(error)
            answers = [] if fewer else [Answer(failure=openai_client.reason(error))] * request.samples
        for rest in request.singly()[len(answers) :]:
            answers += self._ask(rest, max_tokens)
        return answers

    def _ask_once(
        self, request: Request, max_tokens: int, decoding: Decoding, retries: int | None = None
    ) -> list[Answer]:
        """1 to request.samples Answers. retries: None, the endpoint's. Raises what the client raises, and ValueError
        for other replies."""
        job = self.job
        client = self.client if retries is None else self.client.with_options(max_retries=retries)
        options: dict[str, object] = {"model": job.endpoint.name, self.manner.limit: max_tokens}
        sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p}
        options |= {name: value for name, value in sampling.items() if name not in self.manner.unsaid}
        if self.manner.seed:
            options["seed"] = request_seed(job.seed, request.prompt_id, request.first)
        if request.samples > 1:
            options["n"] = request.samples
        template = {"chat_template_kwargs": dict(job.template_options)} if job.chat and job.template_options else {}
        options["extra_body"] = self._untruncated(decoding, max_tokens) | template
        if job.chat:
            system = [{"role": "system", "content": job.system}] if job.system else []
            messages = [*system, {"role": "user", "content": request.prompt}]
            reply = client.chat.completions.create(messages=messages, **options)
        else:
            prompt = FORMS["plain"].prompt.format(question=request.prompt) if request.prompt else ""
            reply = client.completions.create(prompt=prompt, **options)
        return read_reply(reply, request.samples, job.chat)

    def _untruncated(self, decoding: Decoding, max_tokens: int) -> dict[str, object]:
        """Parameters beyond OpenAI's: no top-k unless asked for, no min-p, no penalties, whatever the server's own."""
        if self.manner.form == "parameters":  # vLLM, SGLang; llama.cpp writes repeat_penalty
            return {"top_k": decoding.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
        if self.manner.form == "generation_config":  # transformers serve, greedy unless do_sample stands in it
            settings = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k or 0}
            chosen = {"do_sample": True, **settings} if decoding.temperature else {"do_sample": False}
            return {"generation_config": json.dumps(chosen | {"max_new_tokens": max_tokens, "repetition_penalty": 1.0})}
        if self.job.decoding.top_k:
            raise UserError(f"{self._where} the server takes no top_k; leave it out of sampling.decoding")
        return {}

    def _refused(self, error: Exception) -> UserError:
        endpoint = self.job.endpoint
        page = "/chat/completions" if self.job.chat else "/completions (model.template: plain)"
        return UserError(
            f"{self._where} refuses {page} ({openai_client.reason(error)}); check the model's name, "
            f"{endpoint.key_variable} and that the URL ends where /chat/completions begins, mostly in /v1"
        )

    @property
    def _where(self) -> str:
        return f"endpoint {self.job.endpoint.identity}:"


class _OtherFormError(Exception):
    """The server refuses this form of a request, in these words."""

    def __init__(self, why: str, words: str) -> None:
        super().__init__(why)
        self.words = words


class _NoAnswerError(UserError):
    """The server gives no answer, or an error of its own."""


def _with_words(why: str, words: str) -> str:
    return f"{why}: {words}" if words else why


def request_seed(seed: int, prompt_id: str, sample: int) -> int:
    """The seed of a request, from the experiment's seed, the prompt and its first sample: 31 bits, as servers take."""
    content = json.dumps([seed, prompt_id, sample])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big") >> 1


def _probe(seed: int, count: int) -> Request:
    return Request(f"probe {seed}", PROBE_PROMPT, 0, count)


def _may_pass(failure: str | None) -> bool:
    """Whether a sample failed for a reason that may pass; what the server refuses once it will refuse again."""
    if failure is None or failure in OF_THE_MODEL:
        return False
    return not failure.startswith("HTTP 4") or failure in ("HTTP 408", "HTTP 429")


def _notes(manner: Manner) -> list[str]:
    notes = []
    if manner.form == "plain":
        notes.append("the server takes no top_k or generation_config: defaults of its own may cut the distribution")
    if not manner.seed:
        notes.append("the server takes no seed: its samples cannot be drawn again")
    return notes
