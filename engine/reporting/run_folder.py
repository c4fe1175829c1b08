"""Runs' folders: where one is, and for a store at a URL, up when written and down when another machine asks for it.

Sharing and collecting do nothing for a folder that is in no copy of such a store. Knows nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engine.errors import UserError
from engine.reporting.results import RESULTS_FILE
from engine.store.object_store import is_url
from engine.store.replica import local_copy, mirror_of

OWN = ("mlflow.json",)  # speaks of this machine's MLflow file


def run_path(given: str | Path) -> Path:
    """A run's folder or file; of a URL such as s3://BUCKET/PREFIX/runs/NAME, its newest copy on this machine."""
    if not is_url(str(given)):
        return Path(given)
    url, separator, name = str(given).rstrip("/").rpartition("/runs/")
    if not separator:
        raise UserError(f"{given}: not a run; give STORE/runs/NAME (`leakatk run` prints it)")
    root = local_copy(url)
    collect_runs(root, [name.split("/")[0]])
    return root / "runs" / name


def share_run(folder: Path) -> None:
    """Upload a run's folder, results.json last: a run is there when its results are."""
    mirror = mirror_of(folder)
    if mirror is None:
        return
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for path in sorted(files, key=lambda path: (path.name == RESULTS_FILE, path)):
        if path.name not in OWN:
            mirror.remote.upload(path, mirror.key(path))


def collect_runs(root: Path, names: Iterable[str] | None = None) -> None:
    """Download the folders of finished runs that are not on this machine; `names`: of these, newer or not."""
    mirror = mirror_of(root)
    if mirror is None:
        return
    for name in mirror.remote.folders("runs") if names is None else names:
        folder = root / "runs" / name
        files = mirror.remote.sizes(f"runs/{name}")
        if RESULTS_FILE not in files or (names is None and (folder / RESULTS_FILE).exists()):
            continue
        for file in sorted(files, key=lambda file: file == RESULTS_FILE):
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.fetch")
            mirror.remote.download(f"runs/{name}/{file}", temporary)
            temporary.replace(path)
