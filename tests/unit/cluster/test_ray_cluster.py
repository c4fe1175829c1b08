import sys
from types import ModuleType, SimpleNamespace

import pytest

from engine.cluster import ray_cluster


@pytest.mark.parametrize(
    ("ray", "expected"),
    [
        (None, False),
        (ModuleType("ray"), False),  # another thread is half way through importing it
        (SimpleNamespace(is_initialized=lambda: False), False),
        (SimpleNamespace(is_initialized=lambda: True), True),
    ],
)
def test_connected_asks_ray_only_where_it_is_imported(monkeypatch, ray, expected):
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert ray_cluster.connected() is expected
