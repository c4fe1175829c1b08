"""Where the store is: the words of a user or of LEAKATK_STORE come in, its folder on this machine comes out.

Of a store at a URL that is this machine's copy of it. Knows nothing of what a store holds.
"""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import UserError
from engine.store.object_store import is_url
from engine.store.replica import local_copy

DEFAULT_STORE = "leakatk-store"


def store_path(given: str | Path | None) -> Path:
    """The store's folder, absolute: `given`, else LEAKATK_STORE, else ./leakatk-store; of a URL, its local copy."""
    where = str(given or os.environ.get("LEAKATK_STORE") or DEFAULT_STORE)
    return local_copy(where) if is_url(where) else Path(where).expanduser().resolve()


def check_store(path: Path) -> None:
    """UserError unless the store is there."""
    if not path.is_dir():
        raise UserError(f"{path}: no store there; run an experiment first, or name the store by --store")
