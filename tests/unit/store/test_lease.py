"""Of two workers on one training the one that began last goes on."""

import pytest

from engine.store.lease import Claim, SupersededError
from engine.store.store import Store


def test_a_worker_ends_at_its_next_report_once_another_has_begun(tmp_path):
    told = []
    first = Claim(tmp_path)
    report = first.checked(lambda step, note: told.append((step, note)))
    report(1, note="loss 2")
    second = Claim(tmp_path)
    with pytest.raises(SupersededError, match="begun this again"):
        report(2, note="loss 1")
    second.check()
    assert told == [(1, "loss 2")]


def test_a_finished_stage_has_no_claim_and_takes_no_more_work(tmp_path):
    claims = []
    Store(tmp_path).stage("train", {}, lambda work: claims.append(Claim(work)) or {})
    with pytest.raises(SupersededError):
        claims[0].check()
    assert not list(tmp_path.rglob(".claim"))
