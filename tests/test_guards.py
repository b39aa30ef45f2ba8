"""What stops a run: numbers that are not finite, in whatever place, and too many images that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training import full_disk

from barlowtwins.core.distributed import World
from barlowtwins.core.errors import TrainingError
from barlowtwins.data.images import Unreadable
from barlowtwins.data.open import open_source
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.runs.guards import Evidence, FiniteGuard, is_out_of_memory, require_finite_weights, require_readable
from barlowtwins.views.transform import TwinTransform
from barlowtwins.views.twins import Rows, TwinBatch, TwinReader

ALONE = World(0, 1, torch.device("cpu"))
SOURCE = open_source("shapes:20")
BATCH = TwinReader(SOURCE, TwinTransform("small", size=8, seed=0))[Rows(12, 3, (4, 8, 15, 16))]


def trained(batch: TwinBatch = BATCH, lambd: float = 0.0051) -> tuple[BarlowTwins, torch.Tensor]:
    """A network with the gradients of a batch, and its loss."""
    torch.manual_seed(0)
    model = BarlowTwins("resnet10_x0_5", "8-8", lambd, stem="small")
    loss = model(batch.y1, batch.y2)
    loss.backward()
    return model, loss


def guard(model: BarlowTwins, report: Path, batch: TwinBatch = BATCH, *, late: bool = False) -> FiniteGuard:
    """As on a CPU, or with `late` as on a GPU."""
    made_again = {batch.rows: batch}
    return FiniteGuard(model, ALONE, Evidence(SOURCE, report, made_again.__getitem__), late=late)


def check(model: BarlowTwins, loss: torch.Tensor, report: Path, batch: TwinBatch = BATCH) -> None:
    guard(model, report, batch).check(loss, batch.rows)


def test_finite_numbers_pass_and_nothing_is_written(tmp_path: Path) -> None:
    check(*trained(), tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def test_gradients_that_are_huge_but_finite_pass(tmp_path: Path) -> None:
    model, loss = trained()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
        p.grad.flatten()[0] = 1e19  # its square still is a number
    check(model, loss, tmp_path / "report.json")


def test_a_parameter_without_a_gradient_is_no_matter(tmp_path: Path) -> None:
    model, loss = trained()
    next(model.parameters()).grad = None
    check(model, loss, tmp_path / "report.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_one_bad_number_in_one_gradient_is_found_and_named(tmp_path: Path, value: float, place: int) -> None:
    model, loss = trained()
    name, parameter = list(model.named_parameters())[place]
    assert parameter.grad is not None
    parameter.grad.flatten()[-1] = value
    with pytest.raises(TrainingError, match=rf"the gradient of {name} is (nan|inf) at step 12; nothing was updated"):
        check(model, loss, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["gradients_not_finite"] == [name]
    assert float(report["loss"]) == loss.item()


def test_the_report_has_the_step_the_images_and_the_numbers(tmp_path: Path) -> None:
    model, _ = trained()
    with torch.no_grad():
        model.get_parameter("backbone.conv1.weight")[0, 0, 0, 0] = float("inf")
    loss = model(BATCH.y1, BATCH.y2)
    loss.backward()
    with pytest.raises(TrainingError, match=r"the loss is nan at step 12.*report\.json has the images") as caught:
        check(model, loss, tmp_path / "report.json")
    assert "\n" not in str(caught.value)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["step"], report["epoch"]) == (12, 3)
    assert report["images"] == ["shapes/000004", "shapes/000008", "shapes/000015", "shapes/000016"]
    assert report["parameters_not_finite"] == ["backbone.conv1.weight"]
    assert report["loss"] == report["on_diagonal"] == "nan"
    assert set(report["gradient_norms"]) == {name for name, _ in model.named_parameters()}
    for view, y in zip(report["views"], (BATCH.y1, BATCH.y2), strict=True):
        wanted = {"min": y.min().item(), "max": y.max().item(), "mean": y.mean().item()}
        assert {name: float(value) for name, value in view.items()} == wanted


def test_images_that_are_not_finite_are_seen_in_the_report(tmp_path: Path) -> None:
    y1 = BATCH.y1.clone()
    y1[2, 0, 3, 3] = float("inf")
    batch = BATCH._replace(y1=y1)
    with pytest.raises(TrainingError, match="is nan at step 12"):
        check(*trained(batch), tmp_path / "report.json", batch)
    first, second = json.loads((tmp_path / "report.json").read_text())["views"]
    assert first["max"] == "inf"
    assert second["max"] not in ("inf", "nan")


def test_a_full_disk_does_not_hide_the_reason(tmp_path: Path) -> None:
    model, loss = trained()
    with full_disk(10), pytest.raises(TrainingError, match=r"the loss is inf.*no space left to write .*report\.json"):
        check(model, loss * float("inf"), tmp_path / "report.json")


def test_without_evidence_the_message_names_no_file() -> None:
    model, loss = trained()
    with pytest.raises(TrainingError, match=r"the loss is nan at step 12; nothing was updated\. "):
        FiniteGuard(model, ALONE).check(loss * float("nan"), BATCH.rows)


def test_on_a_gpu_a_step_is_judged_during_the_next_one_and_named_as_itself(tmp_path: Path) -> None:
    model, loss = trained()
    judge = guard(model, tmp_path / "report.json", late=True)
    judge.check(loss * float("nan"), BATCH.rows)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TrainingError, match=r"the loss is nan at step 12; nothing was saved of it"):
        judge.check(loss, BATCH.rows._replace(step=13))
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["step"], report["images"][0]) == (12, "shapes/000004")


def test_on_a_gpu_a_step_is_judged_before_anything_is_saved(tmp_path: Path) -> None:
    model, loss = trained()
    judge = guard(model, tmp_path / "report.json", late=True)
    judge.check(loss, BATCH.rows)
    judge.settle()
    judge.check(loss * float("inf"), BATCH.rows)
    with pytest.raises(TrainingError, match="the loss is inf at step 12"):
        judge.settle()
    judge.settle()  # once is enough


def test_a_gpu_is_where_steps_are_judged_late() -> None:
    for device, late in (("cpu", False), ("mps", False), ("cuda", True)):
        world = World(0, 1, torch.device(device))
        assert FiniteGuard(trained()[0], world).late is late


@pytest.mark.parametrize("name", ["backbone.bn1.running_var", "projector.3.weight", "bn.running_mean"])
def test_a_network_that_is_not_finite_is_not_saved(name: str) -> None:
    model = trained()[0]
    require_finite_weights(model, 7)
    model.state_dict()[name].flatten()[-1] = float("inf")
    with pytest.raises(TrainingError, match=rf"1 tensors of the network, {name} first, are not finite after step 7"):
        require_finite_weights(model, 7)


# Images ---------------------------------------------------------------------------------------------------------------


def bad(*indices: int, exhausted: bool = False) -> TwinBatch:
    found = {index: Unreadable(f"{index}.jpg", "cut short") for index in indices}
    return BATCH._replace(unreadable=found, exhausted=exhausted)


def test_bad_images_are_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert require_readable(bad(), {1, 2}, 5, ALONE) == {1, 2}
    assert capsys.readouterr().err == ""
    assert require_readable(bad(2, 3), {1, 2}, 5, ALONE) == {1, 2, 3}
    said = capsys.readouterr().err
    assert "3.jpg: cut short" in said
    assert "2.jpg" not in said


def test_of_many_bad_images_a_few_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    require_readable(bad(*range(50)), set(), 100, ALONE)
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize(("most", "met", "stops"), [(2.0, (1, 2), False), (2.0, (1, 2, 3), True), (0.64, (1,), True)])
def test_more_than_allowed_stop_the_run(most: float, met: tuple[int, ...], stops: bool) -> None:
    batch: Any = bad(*met)
    if not stops:
        assert require_readable(batch, set(), most, ALONE) == set(met)
        return
    words = rf"cannot be read: {len(met)} \(such as 1\.jpg: cut short\), more than the {int(most)} that --max-bad"
    with pytest.raises(TrainingError, match=words):
        require_readable(batch, set(), most, ALONE)


def test_bad_images_of_earlier_batches_count() -> None:
    with pytest.raises(TrainingError, match="cannot be read: 3 "):
        require_readable(bad(9), {1, 2}, 2, ALONE)


def test_where_no_stand_in_is_found_the_run_stops_whatever_is_allowed() -> None:
    with pytest.raises(TrainingError, match="and no replacement was found"):
        require_readable(bad(1, 2, exhausted=True), set(), 100, ALONE)


# Memory ---------------------------------------------------------------------------------------------------------------


def test_memory_that_is_full_is_told_from_other_errors() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
