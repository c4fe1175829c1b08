"""The cluster that the engine starts on one machine: behind a token, its dashboard on this machine alone."""

import os


def test_a_cluster_of_ones_own_asks_for_a_token_and_shows_its_dashboard_to_this_machine_alone():
    import psutil
    from ray._private.worker import get_dashboard_url

    assert os.environ["RAY_AUTH_MODE"] == "token"  # Ray's own default for a new cluster; its other ports need it
    port = int(get_dashboard_url().rpartition(":")[2])
    # Of the dashboard's port alone: Ray binds the port of its Prometheus metrics to every interface.
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert listening == {"127.0.0.1"}
