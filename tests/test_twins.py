"""Which images at which step, and their views: functions of (seed, epoch, index), whoever computes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from barlowtwins.data.batches import read_ahead
from barlowtwins.data.images import Unreadable
from barlowtwins.views.transform import TwinTransform
from barlowtwins.views.twins import Rows, TwinBatch, TwinReader, epoch_order, plan_batches


class Pictures:
    """Images of noise, no two alike; those in `bad` cannot be read."""

    def __init__(self, count: int = 50, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad = count, bad

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> Image.Image | Unreadable:
        if index in self.bad:
            return Unreadable(str(index), "it is bad")
        rng = np.random.default_rng(index)
        return Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))


TRANSFORM = TwinTransform("small", size=8, seed=3)


def plan(count: int, batch: int, stop: int, **changes: int) -> list[Rows]:
    return list(plan_batches(count, batch, **{"seed": 3, "start": 0, "stop": stop, **changes}))


# The order ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**63 - 1), st.integers(0, 2000), st.integers(1, 300))
def test_an_epochs_order_is_a_permutation(seed: int, epoch: int, count: int) -> None:
    order = epoch_order(seed, epoch, count)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    assert order.tolist() == epoch_order(seed, epoch, count).tolist()


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = {tuple(epoch_order(seed, epoch, 20).tolist()) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_first_places_are_taken_evenly() -> None:
    """Which image comes first is uniform: a chi-square of 9 degrees of freedom stays below its 0.9999 quantile."""
    counts = np.bincount([epoch_order(1, epoch, 10)[0] for epoch in range(2000)], minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 33.7


@settings(deadline=None)
@given(st.integers(2, 60), st.data())
def test_a_plan_is_whole_batches_of_each_epochs_order(count: int, data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, count))
    steps = data.draw(st.integers(0, 12))
    start = data.draw(st.integers(0, steps))
    rows = plan(count, batch, steps, start=start)
    assert [row.step for row in rows] == list(range(start, steps))
    for row in rows:
        place = row.step % (count // batch)
        assert row.epoch == row.step // (count // batch)
        assert list(row.indices) == epoch_order(3, row.epoch, count)[place * batch : (place + 1) * batch].tolist()


def test_an_epoch_shows_each_image_at_most_once_and_leaves_out_others_each_time() -> None:
    rows = plan(23, 5, 400)
    left_out = set()
    for _, epoch in itertools.groupby(rows, key=lambda row: row.epoch):
        shown = [index for row in epoch for index in row.indices]
        assert len(shown) == len(set(shown)) == 20
        left_out |= set(range(23)) - set(shown)
    assert left_out == set(range(23))


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_the_rows_of_all_processes_make_the_global_batch(world: int) -> None:
    shares = [plan(50, 12, 9, rank=rank, world_size=world) for rank in range(world)]
    for whole, *parts in zip(plan(50, 12, 9), *shares, strict=True):
        assert all(part[:2] == whole[:2] for part in parts)
        assert sum((part.indices for part in parts), ()) == whole.indices


# The views ------------------------------------------------------------------------------------------------------------


def read(source: Pictures, rows: list[Rows], workers: int) -> list[TwinBatch]:
    with read_ahead(TwinReader(source, TRANSFORM), rows, workers=workers) as batches:
        return [TwinBatch(b.rows, b.y1.clone(), b.y2.clone(), b.unreadable, b.exhausted) for b in batches]


def test_views_are_the_transforms_of_epoch_and_index() -> None:
    source = Pictures()
    for batch in read(source, plan(50, 7, 9), 0):
        assert batch.y1.shape == batch.y2.shape == (7, 3, 8, 8)
        assert batch.y1.dtype == torch.float32
        for place, index in enumerate(batch.rows.indices):
            y1, y2 = TRANSFORM(source.read(index), epoch=batch.rows.epoch, index=index)
            assert torch.equal(batch.y1[place], y1)
            assert torch.equal(batch.y2[place], y2)
        assert not batch.unreadable
        assert not batch.exhausted


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_workers(workers: int) -> None:
    source, rows = Pictures(bad=(4, 8, 15)), plan(50, 7, 9)
    for one, other in zip(read(source, rows, 0), read(source, rows, workers), strict=True):
        assert one.rows[:2] == other.rows[:2]
        assert list(one.rows.indices) == list(other.rows.indices)
        assert torch.equal(one.y1, other.y1)
        assert torch.equal(one.y2, other.y2)
        assert (one.unreadable, one.exhausted) == (other.unreadable, other.exhausted)


def test_shares_of_a_batch_are_its_rows() -> None:
    source = Pictures(bad=(4, 8, 15))
    whole = read(source, plan(50, 12, 5), 0)
    shares = [read(source, plan(50, 12, 5, rank=rank, world_size=3), 0) for rank in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(batch.y1, torch.cat([part.y1 for part in parts]))
        assert torch.equal(batch.y2, torch.cat([part.y2 for part in parts]))


def test_an_image_looks_different_in_each_epoch_and_its_two_views_differ() -> None:
    reader = TwinReader(Pictures(), TRANSFORM)
    views = [view for epoch in range(4) for view in (reader[Rows(0, epoch, (5,))].y1, reader[Rows(0, epoch, (5,))].y2)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(views, 2))


# Images that cannot be read -------------------------------------------------------------------------------------------


def test_another_image_stands_in_with_the_views_of_the_place() -> None:
    source = Pictures(bad=(7,))
    batch = TwinReader(source, TRANSFORM)[Rows(0, 2, (6, 7, 8))]
    assert batch.unreadable == {7: Unreadable("7", "it is bad")}
    assert not batch.exhausted
    stand_ins = [
        index
        for index in range(len(source))
        if index != 7 and torch.equal(TRANSFORM(source.read(index), epoch=2, index=7)[0], batch.y1[1])
    ]
    assert len(stand_ins) == 1
    y1, y2 = TRANSFORM(source.read(stand_ins[0]), epoch=2, index=7)
    assert torch.equal(batch.y1[1], y1)
    assert torch.equal(batch.y2[1], y2)


def stand_in(epoch: int, index: int, source: Pictures, seed: int = 3) -> int:
    """The image that stands in for `index`, told by its views."""
    transform = TwinTransform("small", size=8, seed=seed)
    view = TwinReader(source, transform)[Rows(0, epoch, (index,))].y1[0]
    return next(
        other
        for other in range(len(source))
        if other not in source.bad and torch.equal(transform(source.read(other), epoch=epoch, index=index)[0], view)
    )


def test_stand_ins_vary_with_epoch_place_and_seed_and_are_no_neighbours() -> None:
    source = Pictures(bad=(20, 21))
    chosen: list[Callable[[int], int]] = [
        lambda n: stand_in(n, 20, source),
        lambda n: stand_in(0, 20, source, seed=n),
    ]
    for choose in chosen:
        found = [choose(n) for n in range(12)]
        assert len(set(found)) > 6
        assert found == [choose(n) for n in range(12)]
        assert sum(abs(other - 20) <= 2 for other in found) <= 3
    assert [stand_in(n, 20, source) for n in range(5)] != [stand_in(n, 21, source) for n in range(5)]


def test_bad_stand_ins_are_counted_too() -> None:
    source = Pictures(count=50, bad=tuple(range(49)))  # only the last can be read
    batch = TwinReader(source, TRANSFORM)[Rows(0, 0, (0, 1))]
    assert not batch.exhausted
    assert {0, 1} < set(batch.unreadable) < set(range(49))
    for place, index in enumerate((0, 1)):
        assert torch.equal(batch.y1[place], TRANSFORM(source.read(49), epoch=0, index=index)[0])


def test_where_nothing_can_be_read_the_batch_says_so() -> None:
    batch = TwinReader(Pictures(count=5, bad=tuple(range(5))), TRANSFORM)[Rows(0, 0, (0, 1))]
    assert batch.exhausted
    assert set(batch.unreadable) == set(range(5))
    assert not batch.y1.any()
