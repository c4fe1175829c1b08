"""The cluster that the engine starts on one machine: behind a token, its dashboard on this machine alone."""

import os


def test_a_cluster_of_ones_own_asks_for_a_token_and_shows_its_dashboard_to_this_machine_alone():
    import psutil

    assert os.environ["RAY_AUTH_MODE"] == "token"  # Ray's own default for a new cluster; its other ports need it
    children = psutil.Process().children(recursive=True)
    dashboards = [child for child in children if any(part.endswith("dashboard.py") for part in child.cmdline())]
    listening = [
        connection.laddr.ip
        for child in dashboards
        for connection in child.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) == {"127.0.0.1"}
