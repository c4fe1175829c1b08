"""The short version of `make chaos`: a killed driver, at one moment; `long`: a full disk and a killed host."""

import pytest

from tests.e2e.chaos import ATTACKS, NEED_ROOT, disturb
from tests.e2e.disturbed import attacked, experiment
from tests.e2e.faults import Places, undisturbed
from tests.e2e.hosts import may_make_namespaces

LONG = pytest.mark.long


@pytest.fixture(scope="module")
def places():
    found = Places()
    yield found
    found.close()


@pytest.fixture(scope="module")
def whole(base_model, tmp_path_factory, places):
    store = tmp_path_factory.mktemp("chaos") / "undisturbed"
    return undisturbed(store, experiment(base_model), places.local())


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=LONG) for fault in ("driver", "full disk", "a host of three")]
)
def test_a_disturbed_run_ends_with_the_undisturbed_result_and_loses_no_finished_work(whole, places, fault, tmp_path):
    if fault in NEED_ROOT and not may_make_namespaces():
        pytest.skip("needs root")
    outcome = disturb(fault, 0, whole, tmp_path, places)
    assert outcome.identical, outcome.why
    assert outcome.lost == 0


@pytest.fixture(scope="module")
def whole_with_attacks(base_model, tmp_path_factory, places):
    return undisturbed(tmp_path_factory.mktemp("chaos") / "attacked", attacked(base_model), places.local())


@pytest.mark.long
@pytest.mark.parametrize("fault", ATTACKS)
def test_a_run_that_is_disturbed_in_its_attacks_gives_the_same_table(whole_with_attacks, places, fault, tmp_path):
    assert all(len(row["attacks"]) == 3 for row in whole_with_attacks.rows)
    outcome = disturb(fault, 0, whole_with_attacks, tmp_path, places)
    assert outcome.identical, outcome.why
    assert outcome.lost == 0
