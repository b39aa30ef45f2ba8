"""One root, the promised exit codes, and errors that cross a process boundary whole."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle

import pytest

from barlowtwins.core import errors

KINDS = [getattr(errors, name) for name in errors.__all__]


def test_everything_raised_on_purpose_is_public_and_has_the_one_root() -> None:
    defined = {kind for _, kind in inspect.getmembers(errors, inspect.isclass)}
    assert defined == set(KINDS)
    assert all(issubclass(kind, errors.BarlowTwinsError) for kind in KINDS)


@pytest.mark.parametrize(
    ("kind", "code"), [(kind, {"UsageError": 2, "StoppedEarly": 75}.get(kind.__name__, 1)) for kind in KINDS]
)
def test_exit_codes(kind: type[errors.BarlowTwinsError], code: int) -> None:
    assert kind.exit_code == code


def test_callers_may_catch_the_kinds_of_the_standard_library() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.MissingExtraError, ImportError)


def _make(kind: type[errors.BarlowTwinsError]) -> errors.BarlowTwinsError:
    return kind("cv2", "fast") if kind is errors.MissingExtraError else kind("found this there; do that")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_the_same_after_pickling(kind: type[errors.BarlowTwinsError]) -> None:
    error = _make(kind)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def _fail(_: int) -> None:
    raise errors.MissingExtraError("cv2", "fast")


def test_a_missing_extra_in_a_worker_process_names_the_install_in_the_parent() -> None:
    with (
        multiprocessing.get_context("spawn").Pool(1) as pool,
        pytest.raises(errors.MissingExtraError, match=r"pip install 'barlowtwins\[fast\]'"),
    ):
        pool.map_async(_fail, [0]).get(timeout=60)
