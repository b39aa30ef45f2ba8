"""Names of devices and precisions mean what the machine has, and an error says what that is."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from barlowtwins.core import device as devices
from barlowtwins.core.errors import ConfigError, UsageError

HAS_CUDA = torch.cuda.is_available()


def test_auto_and_none_give_the_first_device_of_the_list() -> None:
    best = devices.available_devices()[0]
    for name in ("auto", None, " AUTO "):
        assert str(devices.resolve_device(name)) == best.partition(":")[0]


def test_a_resolved_device_computes_and_resolves_to_itself() -> None:
    for name in devices.available_devices():
        device = devices.resolve_device(name)
        assert torch.ones(3, device=device).sum().item() == 3
        assert devices.resolve_device(device) == device
        assert devices.device_name(device)


@pytest.mark.skipif(HAS_CUDA, reason="is about a machine without a GPU")
def test_cuda_without_one_lists_what_there_is() -> None:
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=rf"device {name} .*choose one of .*cpu") as caught:
            devices.resolve_device(name)
        assert caught.value.exit_code == 1


def test_a_gpu_beyond_the_last_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"cuda:99 .*choose one of .*cpu"):
        devices.resolve_device("cuda:99")


@pytest.mark.parametrize(("name", "hint"), [("cudda", "did you mean cuda"), ("cuda:x", "cuda:N"), ("", "auto")])
def test_no_kind_of_device_is_bad_usage(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        devices.resolve_device(name)


def test_precision_on_the_cpu() -> None:
    cpu = torch.device("cpu")
    assert devices.resolve_precision("auto", cpu) == "fp32"
    assert devices.resolve_precision("bf16", cpu) == "bf16"
    with pytest.raises(UsageError, match="fp16"):
        devices.resolve_precision("fp16", cpu)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="no GPU here")
def test_auto_precision_is_bf16_where_the_gpu_has_it() -> None:
    device = devices.resolve_device("cuda")
    native = torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    assert devices.resolve_precision("auto", device) == ("bf16" if native else "fp32")


def test_autocast_sets_the_precision_of_a_product_and_fp32_overrides_an_outer_one() -> None:
    cpu, a = torch.device("cpu"), torch.ones(2, 2)
    with devices.autocast(cpu, "bf16"):
        assert (a @ a).dtype == torch.bfloat16
        with devices.autocast(cpu, "fp32"):
            assert (a @ a).dtype == torch.float32


def test_container_quota(tmp_path: Path) -> None:
    cpu_max = tmp_path / "cpu.max"
    assert devices._container_quota(cpu_max, 8) == 8  # no cgroup v2
    for text, cores in (("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("nonsense", 8)):
        cpu_max.write_text(text + "\n")
        assert devices._container_quota(cpu_max, 8) == cores


def test_default_workers_leave_a_core_and_are_shared_by_the_processes_of_a_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cores = devices.usable_cores()
    assert 1 <= cores <= (os.cpu_count() or 1)
    assert devices.default_workers() == min(cores - 1, 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    assert devices.default_workers() == 0


def test_a_cpu_that_refuses_what_it_announces_is_found_without_dying_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process that dies of a real signal, which a matrix product raises here instead of the CPU."""
    devices._bf16_kills.cache_clear()
    assert devices._bf16_kills() is None
    devices._bf16_kills.cache_clear()
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *_: os.kill(os.getpid(), signal.SIGILL))
    try:
        with pytest.raises(ConfigError, match=r"bf16 crashes with SIGILL on this CPU: .*; use --precision fp32"):
            devices.resolve_precision("bf16", torch.device("cpu"))
        assert devices.resolve_precision("auto", torch.device("cpu")) == "fp32"
    finally:
        devices._bf16_kills.cache_clear()


def test_workers_are_those_asked_for_or_the_machines() -> None:
    assert devices.resolve_workers(0) == 0
    assert devices.resolve_workers(7) == 7
    assert devices.resolve_workers(None) == devices.default_workers()


def test_convolutions_run_in_channels_last_but_on_apple_gpus() -> None:
    layouts = {kind: devices.memory_layout(torch.device(kind)) for kind in ("cpu", "cuda", "mps")}
    assert layouts == {
        "cpu": torch.channels_last,
        "cuda": torch.channels_last,
        "mps": torch.contiguous_format,
    }
