"""Two tiny models: the one that is trained and its reference model."""

import pytest

from tests.unit.methods.formulas import tiny


@pytest.fixture(scope="module")
def model():
    return tiny(0)


@pytest.fixture(scope="module")
def reference():
    return tiny(1)
