"""Turns a PyTorch model and a function that gives batches into a runner for Trialhead.

    from trialhead_runner import Runner

    Runner(
        name="my-model",
        build_model=lambda spec: MyModel(),
        batches=lambda split, indices: (inputs[split][indices], targets[split][indices]),
        examples={"training": 50_000, "validation": 10_000},
    ).main()

`contract`, `sampling` and `memory` need nothing but the standard library: a runner for another framework, or in
another language, can be written after them.
"""

from .contract import Diverged, Events, Infeasible, Unsupported

__all__ = ["Diverged", "Events", "Infeasible", "Runner", "Unsupported"]


def __getattr__(name):
    # PyTorch takes its time and its memory: only those who train with it pay for it.
    if name == "Runner":
        from .runner import Runner

        return Runner
    raise AttributeError(name)
