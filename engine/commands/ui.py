"""`leakatk ui`: MLflow's own server on the store in use, on this machine alone."""

from __future__ import annotations

import argparse
import os
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="STORE", help="the store (default ./leakatk-store)")
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default 5000)")


def run(args: argparse.Namespace) -> int:
    from engine.redact import redact
    from engine.store.location import check_store, store_path
    from engine.tracking.recorder import tracking_uri

    root = store_path(args.store)
    uri = tracking_uri(root)
    if uri.startswith("http"):
        print(f"MLflow runs already, at {redact(uri)} (MLFLOW_TRACKING_URI)")
    else:
        check_store(root)
        print(f"MLflow: http://127.0.0.1:{args.port} (ctrl-C ends it)", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
        command += ["--artifacts-destination", str(root / "mlartifacts"), "--host", "127.0.0.1"]
        os.execv(sys.executable, [*command, "--port", str(args.port)])
    return 0
