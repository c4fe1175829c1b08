"""OpenAI-compatible servers: their URL, the client, and failures in few words.

Knows nothing of what is asked. The API key comes from the environment alone and stands in no message: the client's
errors, which hold the request, are not passed on, and the server's own words only without what may quote the key.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import urlsplit

from engine.errors import UserError, one_line
from engine.redact import HIDDEN, redact

DEFAULT_KEY = "OPENAI_API_KEY"
MOST_WORDS = 300  # characters of what a server says
QUOTED = 6  # first characters of a key by which a quoted part of it is known


def checked_url(url: str, where: str) -> str:
    """The server's URL without a slash at its end. UserError unless it is http(s) with nothing secret in it."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    if not whole:
        raise UserError(f"{where}: not a server's URL; give it as http://HOST:PORT/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"{where}: give the URL without user, password or query, for it is stored with the results; "
            "the key is read from the environment"
        )
    return url.rstrip("/")


def connect(url: str | None, key_variable: str, retries: int, timeout: float) -> Any:
    """The openai client; servers without keys get "none".

    retries: of a request, with exponential backoff or as the server asks (rate limits, server errors, lost
    connections, timeouts); timeout: seconds a request.
    """
    import openai

    key = os.environ.get(key_variable) or "none"
    return openai.OpenAI(api_key=key, base_url=url, max_retries=retries, timeout=timeout)


def reason(error: Exception) -> str:
    """Why a request failed, in few words that are the same for the same cause."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return "timeout"
    if isinstance(error, openai.APIConnectionError):
        return "connection lost"
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}"
    return "malformed reply"


def server_words(error: Exception, key_variable: str) -> str:
    """What the server itself says of a request that it refused, in one line without the key: "" where it says nothing,
    or refuses the key, for then it may quote a part of it."""
    import openai

    if not isinstance(error, openai.APIStatusError) or refuses_all(error):
        return ""
    body = error.body
    said = body.get("message") or body.get("detail") or body if isinstance(body, dict) else body
    text = redact(one_line(str(said or "")))
    key = os.environ.get(key_variable, "")
    if len(key) >= QUOTED:
        text = re.sub(r"[^\s'\"]+", lambda word: HIDDEN if key[:QUOTED] in word[0] or key in word[0] else word[0], text)
    return text[:MOST_WORDS]


def refuses_all(error: Exception) -> bool:
    """Whether the server would refuse any request like this one: wrong key, no such model, no such page."""
    import openai

    return isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError | openai.NotFoundError)


def refuses_form(error: Exception) -> bool:
    """Whether the server may take the same request in another form."""
    import openai

    return isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError)


def parted(message: Any) -> tuple[str | None, str | None]:
    """The answer of a message and its thoughts; an answer is None where there are thoughts alone. A refusal is what the
    model said."""
    text = message.refusal if message.content is None else message.content
    thought = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    if isinstance(text, str) and re.match(r"\s*<think>", text):  # a server that parts nothing
        thought, closed, answer = text.partition("</think>")
        return answer.lstrip() if closed else None, thought
    return None if thought and not text else text, thought
