"""Optimizers: LARS, parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from barlowtwins.core.errors import ConfigError

__all__ = ["LARS", "build_optimizer", "learning_rate_factor", "parameter_groups"]


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), as in the published recipe.

    For a parameter p with gradient g, if `adapt` is on (the momentum buffer m starts at 0):

        g <- g + weight_decay p
        g <- g * eta |p| / |g|          (if both norms are positive)
        m <- momentum m + g
        p <- p - lr m

    Groups with `adapt=False` skip the second line; `parameter_groups` puts biases and batch norm into such a group,
    without decay. A few multi-tensor calls update all parameters of a group; no value is read back from the device.

    Args:
        params: parameters or groups; a group may set `lr`, `weight_decay`, `momentum`, `eta` and `adapt`.
        lr: learning rate.
        weight_decay: added to the gradient as weight_decay * p.
        momentum: factor of the momentum buffer, without dampening.
        eta: trust coefficient.
        adapt: whether to scale by the ratio of norms.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        eta: float = 0.001,
        adapt: bool = True,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("momentum", momentum), ("eta", eta)):
            if not value >= 0:
                raise ConfigError(f"LARS: {name} is {value}; it must not be negative")
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta, "adapt": adapt}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the result of `closure`, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        updates: Any = [p.grad for p in params]
        if group["weight_decay"]:
            updates = torch._foreach_add(updates, params, alpha=group["weight_decay"])
        if group["adapt"]:
            updates = torch._foreach_mul(updates, self._trust_ratios(params, updates, group["eta"]))
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])

    @staticmethod
    def _trust_ratios(params: list[Tensor], updates: list[Tensor], eta: float) -> list[Tensor]:
        p_norm = torch.stack(torch._foreach_norm(params))  # (number of parameters,)
        g_norm = torch.stack(torch._foreach_norm(updates))
        ratio = eta * p_norm / g_norm
        return list(torch.where((p_norm > 0) & (g_norm > 0), ratio, torch.ones_like(ratio)).unbind())


def parameter_groups(module: nn.Module, *, lr: float, lr_bias: float, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters as published: weights; and 1-d ones (biases, batch norm), without decay.

    The groups hold `peak_lr`, which a schedule multiplies, and `adapt`, which LARS reads.
    """
    params = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.ndim > 1], "peak_lr": lr, "weight_decay": weight_decay, "adapt": True},
        {"params": [p for p in params if p.ndim <= 1], "peak_lr": lr_bias, "weight_decay": 0.0, "adapt": False},
    ]


def build_optimizer(
    name: str, module: nn.Module, *, lr: float, lr_bias: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Build an optimizer over `parameter_groups`; its learning rates start at 0, for `learning_rate_factor`.

    Args:
        name: "lars" (momentum 0.9, eta 0.001), "sgd" (momentum 0.9) or "adamw" (betas 0.9, 0.999).
        module: the network to train.
        lr, lr_bias: peak learning rates of weights and of 1-d parameters, already multiplied by batch size / 256.
        weight_decay: weight decay of the weights.

    Raises:
        ConfigError: the name is unknown.
    """
    groups = parameter_groups(module, lr=lr, lr_bias=lr_bias, weight_decay=weight_decay)
    if name == "lars":
        return LARS(groups, lr=0.0)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0)
    raise ConfigError(f"unknown optimizer {name!r}; choose one of lars, adamw, sgd")


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int, final: float = 0.001) -> float:
    """Return the factor of the peak learning rate: a linear warmup, then a half cosine down to `final`.

    Args:
        step: number of the step, from 0; `step >= steps` gives `final`.
        steps: length of the run.
        warmup_steps: the factor rises from 0 at step 0 to 1 at this step; at most `steps`.
        final: factor at the end.
    """
    if step >= steps:
        return final
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
