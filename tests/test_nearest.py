"""Nearest rows by cosine, compared with a float64 sort of all similarities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from barlowtwins.core.errors import ConfigError, DataError
from barlowtwins.metrics.nearest import nearest, unit_rows


def cosines(bank: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(Q, M) in float64, from the definition."""
    bank, queries = bank.astype(np.float64), queries.astype(np.float64)
    return queries @ bank.T / np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(bank, axis=1))


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(1, 40),
    q=st.integers(1, 12),
    d=st.integers(1, 9),
    chunk=st.integers(1, 41),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_agrees_with_a_full_sort_whatever_the_chunk(
    m: int, q: int, d: int, chunk: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, m))
    rng = np.random.default_rng(seed)
    bank, queries = rng.normal(size=(m, d)).astype(np.float32), rng.normal(size=(q, d)).astype(np.float32)
    similarity, rows = nearest(bank, queries, k, chunk=chunk)
    exact = cosines(bank, queries)
    np.testing.assert_allclose(similarity.numpy(), -np.sort(-exact, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, rows.numpy(), axis=1), similarity.numpy(), atol=1e-6)
    assert all(len(set(row)) == k for row in rows.tolist())


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_equal_similarities_come_in_order_of_rows(chunk: int) -> None:
    bank = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [4.0, 0.0], [0.0, -1.0], [2.0, 0.0]])
    similarity, rows = nearest(bank, torch.tensor([[2.0, 0.0], [0.0, 0.0]]), 7, chunk=chunk)
    assert rows[0].tolist() == [1, 4, 6, 0, 3, 5, 2]
    assert similarity[0].tolist() == [1, 1, 1, 0, 0, 0, -1]
    assert rows[1].tolist() == list(range(7))  # a query of zeros: similarity 0 to all
    assert similarity[1].tolist() == [0] * 7


def test_unreadable_rows_are_nobodys_neighbour() -> None:
    bank = np.array([[1, 0], [np.nan, np.nan], [1, 1], [np.inf, 0]], dtype=np.float32)
    _, rows = nearest(bank, np.array([[1.0, 0.1]]), 2)
    assert rows.tolist() == [[0, 2]]
    with pytest.raises(ConfigError, match="2 usable rows; choose k up to 2"):
        nearest(bank, np.array([[1.0, 0.1]]), 3)
    with pytest.raises(DataError, match="1 of 1 queries contain NaN"):
        nearest(bank, bank[1:2], 1)


def test_rows_of_any_length_are_compared_by_direction() -> None:
    bank = torch.tensor([[3e38, 3e38], [1e-40, 0.0], [0.0, 1e-30]])
    similarity, rows = nearest(bank, torch.tensor([[1e-38, 1e-38]]), 3)
    assert rows.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(similarity, torch.tensor([[1.0, 0.5**0.5, 0.5**0.5]]), atol=1e-4, rtol=0)


def test_a_memory_mapped_bank_is_read_not_loaded(tmp_path: Path) -> None:
    bank = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    np.save(tmp_path / "bank.npy", bank)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    for got, wanted in zip(nearest(mapped, mapped, 4, chunk=64), nearest(bank, bank, 4, chunk=300), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("queries", "bank"), [(7, 10), (100, 33), (1, 100), (65, 5)])
def test_it_says_how_far_it_is(queries: int, bank: int) -> None:
    told: list[int] = []
    nearest(torch.randn(bank, 4), torch.randn(queries, 4), 3, chunk=4, after_chunk=told.append)
    assert sum(told) == queries and min(told) >= 0
    assert len(told) == -(-bank // 4) * -(-queries // 32)


def test_wrong_sizes_are_told_with_numbers() -> None:
    with pytest.raises(ConfigError, match="k is 11, but the bank has 10 rows; choose k from 1 to 10"):
        nearest(torch.randn(10, 4), torch.randn(2, 4), 11)
    with pytest.raises(ConfigError, match="queries have 5 features and the bank has 4; use the same network"):
        nearest(torch.randn(10, 4), torch.randn(2, 5), 1)


def test_no_queries_give_no_rows() -> None:
    similarity, rows = nearest(torch.randn(10, 4), torch.empty(0, 4), 3)
    assert similarity.shape == rows.shape == (0, 3)


def test_unit_rows_keep_zeros() -> None:
    rows, finite = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0], [torch.nan, 1.0]]))
    torch.testing.assert_close(rows[:2], torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert finite.tolist() == [True, True, False]
