"""Draws of labelled images, as properties of any labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from barlowtwins.core.errors import DataError
from barlowtwins.evaluate.draws import balanced_draw, few_shot, set_aside

Labels = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


@given(Labels, st.data())
def test_a_balanced_draw_takes_as_many_of_each_class_as_there_are(labels: np.ndarray, data: st.DataObject) -> None:
    count, seed = data.draw(st.integers(1, len(labels))), data.draw(st.integers(0, 5))
    drawn = balanced_draw(labels, count, seed=seed)
    assert len(drawn) == count and (np.diff(drawn) > 0).all()  # sorted, none twice
    have, got = np.bincount(labels, minlength=5), np.bincount(labels[drawn], minlength=5)
    assert (got <= have).all()
    not_used_up = got[got < have]
    if len(not_used_up):  # such a class got no less than any other, but for the one of the last round
        assert not_used_up.min() >= got.max() - 1


@given(Labels, st.data())
def test_a_smaller_draw_is_a_part_of_a_larger(labels: np.ndarray, data: st.DataObject) -> None:
    small = data.draw(st.integers(1, len(labels)))
    large = data.draw(st.integers(small, len(labels)))
    assert set(balanced_draw(labels, small, seed=3)) <= set(balanced_draw(labels, large, seed=3))


def test_one_percent_of_balanced_classes_is_one_percent_of_each() -> None:
    labels = np.repeat(np.arange(10), 600)
    assert np.bincount(labels[balanced_draw(labels, 60)]).tolist() == [6] * 10


def test_draws_are_functions_of_the_seed_and_spread_over_the_images() -> None:
    labels = np.arange(1000) % 10
    first = balanced_draw(labels, 100, seed=1)
    assert (first == balanced_draw(labels, 100, seed=1)).all()
    assert len(set(first) & set(balanced_draw(labels, 100, seed=2))) < 30  # 10 by chance
    times = np.zeros(1000)
    for seed in range(200):
        times[few_shot(labels, 10, seed=seed)] += 1
    assert times.mean() == 20 and times.min() > 4 and times.max() < 45  # binomial, standard deviation 4.2


@given(Labels, st.integers(0, 3))
def test_few_shot_takes_as_many_of_each(labels: np.ndarray, seed: int) -> None:
    counts = np.bincount(labels)
    fewest = counts[counts > 0].min()
    drawn = few_shot(labels, fewest, seed=seed)
    assert set(np.bincount(labels[drawn])) <= {0, fewest}
    assert len(drawn) == fewest * (counts > 0).sum()
    with pytest.raises(DataError, match="images per class are needed, but class"):
        few_shot(labels, fewest + 1, seed=seed)


@given(Labels, st.floats(0, 1), st.integers(0, 3))
def test_a_fraction_of_each_class_is_held_out(labels: np.ndarray, fraction: float, seed: int) -> None:
    aside = set_aside(labels, fraction, seed=seed)
    for k in np.unique(labels):
        assert aside[labels == k].sum() == int(fraction * (labels == k).sum())
