"""The contract between Trialhead and a runner, with the standard library only.

A runner is a program that a worker starts once for each probe. It finds the probe's specification as JSON on its
standard input, and says what it measures as JSON lines ("events") on the descriptor that the variable
TRIALHEAD_EVENTS_FD names. Standard output and standard error are logs. See docs/runners.md.
"""

import json
import math
import os
import sys
import time

PROTOCOL = 1


class Infeasible(Exception):
    """The task cannot be done, which is knowledge and no error: the probe is not tried again."""

    def __init__(self, reason, detail):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Unsupported(Infeasible):
    """This runner does not do such probes."""

    def __init__(self, detail):
        super().__init__("runner_unsupported", detail)


class Diverged(Infeasible):
    """The loss is no longer a number."""

    def __init__(self, steps):
        super().__init__(
            "diverged", f"the training loss was no longer finite after {steps} steps"
        )


# The unit of every metric that a runner of this module tells; docs/runners.md has all of them.
UNITS = {
    "accumulated_time_per_step": "s",
    "best_accuracy": "ratio",
    "best_evaluation": "metric",
    "best_evaluation_error": "loss",
    "best_step": "count",
    "block_time_per_step": "s",
    "blocks": "count",
    "canary_time_per_step": "s",
    "chance_loss": "loss",
    "compile_secs": "s",
    "converged": "count",
    "divergent_learning_rate": "ratio",
    "evaluation_difference": "loss",
    "evaluation_share": "ratio",
    "first_loss": "loss",
    "forward_backward_time_per_step": "s",
    "forward_time_per_step": "s",
    "gain_over_chance": "loss",
    "gain_over_chance_error": "loss",
    "last_loss": "loss",
    "late_gain": "ratio",
    "load_time_per_step": "s",
    "matmul_rate": "flop/s",
    "peak_memory": "bytes",
    "peak_resident_memory": "bytes",
    "prefetched_time_per_step": "s",
    "readback_time_per_step": "s",
    "run_queue_delay_ratio": "ratio",
    "sampling_secs": "s",
    "steps": "count",
    "steps_per_block": "count",
    "steps_to_target": "count",
    "synthetic_time_per_step": "s",
    "synthetic_time_per_step_mean": "s",
    "synthetic_time_per_step_median": "s",
    "time_per_step_mean": "s",
    "time_per_step_median": "s",
    "training_loss": "loss",
    "transfer_time_per_step": "s",
    "unprefetched_time_per_step": "s",
    "validation_accuracy": "ratio",
    "validation_auc": "ratio",
    "validation_cross_entropy": "nats",
    "validation_error_rate": "ratio",
    "validation_loss": "loss",
    "validation_mean_squared_error": "squared_units",
    "validation_perplexity": "tokens",
    "warm_up_secs": "s",
    "whole_batch_time_per_step": "s",
    "within_run_mean_half_width": "ratio",
    "within_run_median_half_width": "ratio",
}


class Events:
    """Writes events, and numbers and dates the measurements."""

    def __init__(self, runner):
        self._started = time.monotonic()
        self._seq = 0
        descriptor = os.environ.get("TRIALHEAD_EVENTS_FD")
        # Without a worker, for people who try it: on standard output.
        self._out = (
            sys.stdout
            if descriptor is None
            else os.fdopen(int(descriptor), "w", encoding="utf-8")
        )
        self._send(event="started", protocol=PROTOCOL, runner=runner)

    def _send(self, **event):
        # JSON has no NaN and no infinity: better an error here than a line that nobody can read.
        self._out.write(json.dumps(event, allow_nan=False) + "\n")
        self._out.flush()

    def elapsed_secs(self):
        return time.monotonic() - self._started

    def progress(self, phase, fraction):
        """How far the probe is, for people. Never while something is timed."""
        self._send(event="progress", phase=phase, fraction=fraction)

    def measurement(self, metric, value, step=None, unit=None, elapsed_secs=None):
        """One figure: of the whole probe, or with a step of one step or block."""
        event = {
            "event": "measurement",
            "seq": self._seq,
            "metric": metric,
            "value": float(value),
            "unit": UNITS[metric] if unit is None else unit,
            "elapsed_secs": self.elapsed_secs() if elapsed_secs is None else elapsed_secs,
        }
        if step is not None:
            event["step"] = step
        self._seq += 1
        self._send(**event)

    def finished(self):
        self._send(event="finished")

    def infeasible(self, reason, detail):
        self._send(event="infeasible", reason=reason, detail=detail)

    def failed(self, detail):
        self._send(event="failed", detail=detail)


def run(name, tasks):
    """Runs the probe on standard input with the function for its kind: `tasks[kind](spec, events)`.

    Anything that a function raises but `Infeasible` goes its way: the worker reads the traceback, and tells running
    out of memory from other ends by it.
    """
    events = Events(name)
    spec = json.loads(sys.stdin.buffer.read())
    if spec.get("protocol") != PROTOCOL:
        events.failed(
            f"the spec speaks protocol {spec.get('protocol')}, this runner {PROTOCOL}"
        )
        sys.exit(2)
    kind = spec["task"]["kind"]
    try:
        if kind not in tasks:
            raise Unsupported(
                f"{name} does not do {kind} probes, only {', '.join(sorted(tasks))}"
            )
        tasks[kind](spec, events)
    except Infeasible as end:
        events.infeasible(end.reason, end.detail)
    else:
        events.finished()


def check_finite(loss, steps):
    """Says that training has diverged when it has."""
    if not math.isfinite(loss):
        raise Diverged(steps)
    return loss
