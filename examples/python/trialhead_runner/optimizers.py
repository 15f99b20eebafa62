"""From a specification's optimizer, schedule and clipping to PyTorch's."""

import math

import torch

from .contract import Unsupported


def build(optimizer, parameters):
    """PyTorch's optimizer with the very update rule that the specification names, or `Unsupported`."""
    family = optimizer["family"]
    rate = optimizer["learning_rate"]
    if family in ("sgd", "sgd_momentum", "sgd_nesterov"):
        return torch.optim.SGD(
            parameters,
            lr=rate,
            momentum=optimizer.get("momentum", 0.0),
            nesterov=family == "sgd_nesterov" and optimizer["momentum"] > 0.0,
            weight_decay=optimizer.get("weight_decay", 0.0),
        )
    if family in ("adam", "adamw"):
        if optimizer.get("epsilon_form", "bias_corrected") != "bias_corrected":
            raise Unsupported(f"PyTorch's {family} has no epsilon that is uncorrected")
        betas = (optimizer["beta_1"], optimizer["beta_2"])
        if family == "adam":
            return torch.optim.Adam(
                parameters, lr=rate, betas=betas, eps=optimizer["epsilon"]
            )
        return torch.optim.AdamW(
            parameters,
            lr=rate,
            betas=betas,
            eps=optimizer["epsilon"],
            weight_decay=optimizer["weight_decay"],
        )
    if family == "rmsprop":
        is_pytorchs = (
            optimizer.get("epsilon_form") == "outside_root"
            and optimizer.get("initial_square") == "zero"
        )
        if not is_pytorchs:
            raise Unsupported(
                "PyTorch's rmsprop has its epsilon outside_root and an initial_square of zero"
            )
        return torch.optim.RMSprop(
            parameters,
            lr=rate,
            alpha=optimizer["rho"],
            momentum=optimizer["momentum"],
            eps=optimizer["epsilon"],
        )
    raise Unsupported(f"PyTorch has no {family} as the specification defines it")


def schedule_factor(schedule, step):
    """The factor on the learning rate at a step, counted from 1."""
    warm_up = schedule.get("warm_up_steps", 0)
    if step <= warm_up:
        return step / warm_up
    if schedule.get("kind", "constant") == "constant":
        return 1.0
    progress = min(1.0, (step - warm_up - 1) / max(1, schedule["decay_steps"]))
    last = schedule.get("final_factor", 0.0)
    if schedule["kind"] == "linear":
        return 1.0 - (1.0 - last) * progress
    return last + (1.0 - last) * (1.0 + math.cos(math.pi * progress)) / 2.0


def clip(clipping, parameters):
    """Limits the gradients before the optimizer sees them."""
    kind = clipping.get("kind", "none")
    if kind == "global_norm":
        torch.nn.utils.clip_grad_norm_(parameters, clipping["max_norm"])
    elif kind == "value":
        torch.nn.utils.clip_grad_value_(parameters, clipping["max_value"])
