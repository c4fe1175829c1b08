"""Secrets kept out of what is shown and stored: credentials in URLs, and the values of variables that hold keys.

Text comes in, text without secrets goes out. An experiment file must hold none at all: it ends in manifests, MLflow's
parameters and reports.
"""

from __future__ import annotations

import os
import re

from engine.errors import UserError

HIDDEN = "***"
IN_URL = re.compile(
    r"(?<=://)[^/\s@'\"]+(?=@)|(?<=[?&])((?:api_?key|access_?token|token|key|password|secret|sig)=)[^&\s'\"]+", re.I
)
KEY_VARIABLE = re.compile(r"(^|_)(API)?(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.I)
SHORTEST = 8  # characters of a value that is hidden wherever it stands: shorter ones are words


def redact(text: str) -> str:
    """`text` with every credential in a URL, and every value of a variable named ..._KEY or ..._TOKEN, as ***."""
    values = {value for name, value in os.environ.items() if KEY_VARIABLE.search(name) and len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return IN_URL.sub(lambda found: (found[1] or "") + HIDDEN, text)


def refuse_secrets(value: object, where: str) -> None:
    """UserError where a text anywhere in `value` holds a credential."""
    if isinstance(value, dict):
        for key, each in value.items():
            refuse_secrets(key, where)
            refuse_secrets(each, f"{where}.{key}" if isinstance(key, str) else where)
    elif isinstance(value, list | tuple):
        for each in value:
            refuse_secrets(each, where)
    elif isinstance(value, str) and redact(value) != value:
        raise UserError(
            f"{where}: holds a credential, and would be stored with the results; give it by the environment"
        )
