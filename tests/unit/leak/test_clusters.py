"""Which prompts belong together, by their labels."""

import numpy as np
import pytest

from engine.leak.clusters import clusters_of


def test_prompts_with_one_label_are_one_cluster_wherever_they_stand():
    clusters = clusters_of(["a", "b", "a", "a", "c"], 5)
    assert (clusters.count, clusters.sizes.tolist()) == (3, [3, 1, 1])
    values = np.arange(10.0).reshape(5, 2)
    assert clusters.sums(values).tolist() == [[10, 13], [2, 3], [8, 9]]


def test_without_labels_every_prompt_stands_for_itself():
    assert clusters_of(None, 4).alone
    assert clusters_of([None, "a", None, "b"], 4).alone
    assert clusters_of(["x", "z", "y"], 3).sums(np.array([[1.0], [2], [3]])).ravel().tolist() == [1, 2, 3]


def test_a_prompt_without_a_label_joins_no_other():
    assert clusters_of(["a", None, "a", None], 4).sizes.tolist() == [2, 1, 1]


def test_a_number_and_none_are_labels_apart():
    assert clusters_of([0, 0, None, 1], 4).sizes.tolist() == [2, 1, 1]


def test_part_keeps_what_belongs_together():
    part = clusters_of(["a", "b", "a", "b", "c"], 5).part(np.array([True, False, True, True, False]))
    assert part.sizes.tolist() == [2, 1]


def test_as_many_labels_as_prompts_are_wanted():
    with pytest.raises(ValueError, match="2 cluster labels for 3 prompts"):
        clusters_of(["a", "b"], 3)
