"""A runner in Python's standard library that trains nothing: a device whose memory and times are known, or a breach of
the contract, as its arguments say. With `FOLDER` first, the folder of the module `trialhead_runner`."""

import json
import os
import random
import sys

sys.path.insert(0, sys.argv[1])
from trialhead_runner import contract  # noqa: E402
from trialhead_runner.contract import Infeasible, Unsupported  # noqa: E402

FAULT = sys.argv[2] if len(sys.argv) > 2 else None
DIVERGENT = 1.0


def count(spec):
    return spec["device"].get("count", 1)


def peak(spec):
    """40 MB and 50 kB for each example of a device, really allocated."""
    size = int(4e7 + 5e4 * spec["batch_size"] / count(spec))
    held = bytearray(size)
    held[::4096] = b"x" * len(held[::4096])
    return size


def smoke(spec, events):
    events.measurement("first_loss", 2.3)
    events.measurement("last_loss", 1.9)
    events.measurement("validation_loss", 2.0)
    events.measurement("evaluation_difference", 0.0)
    events.measurement("steps", spec["task"]["steps"])


def memory(spec, events):
    events.measurement("peak_memory", peak(spec))
    events.measurement("steps", spec["task"]["steps"])


def step_time(spec, events):
    """1 ms and 10 µs an example; `runner.options.slower` times as long. Several devices share a batch, and take
    `communication_secs` more."""
    options = spec["runner"].get("options", {})
    secs = (1e-3 + 1e-5 * spec["batch_size"] / count(spec)) * options.get("slower", 1)
    if count(spec) > 1:
        secs += options.get("communication_secs", 0.0)
    for block in range(50):
        spread = 1.0 + 0.004 * (block * 7 % 11 - 5.0) / 5.0
        events.measurement("block_time_per_step", secs * spread, step=block)
    events.measurement("time_per_step_median", secs)
    events.measurement("time_per_step_mean", secs)
    events.measurement("blocks", 50)
    events.measurement("converged", 1)
    events.measurement("canary_time_per_step", 1e-3)


def training(spec, events):
    task = spec["task"]
    rate = spec["optimizer"]["learning_rate"]
    if rate > DIVERGENT:
        raise Infeasible("diverged", "too fast")
    import math

    off = math.log(rate / (0.2 * DIVERGENT))
    steps = 20.0 + 600.0 / spec["batch_size"]
    steps *= (1.0 + 0.3 * off * off) * (1.0 + 0.01 * (spec["seed"] % 7))
    cap = task["max_steps"]
    target = task.get("target", {"metric": "validation_cross_entropy", "value": 0.2})
    last = min(cap, math.ceil(steps) + 1)
    step = 0
    while True:
        value = target["value"] * steps / max(1, min(step, 2 * steps))
        events.measurement(target["metric"], value, step=step)
        if step >= last:
            break
        step = min(last, max(step + 1, math.ceil(step * task["evaluation_ratio"])))
    if steps <= cap:
        events.measurement("steps_to_target", steps)
    events.measurement("best_evaluation", value)
    events.measurement("best_step", step)
    events.measurement("steps", step)
    events.measurement("chance_loss", 2.3)


def learning_rate_range(spec, events):
    events.measurement("divergent_learning_rate", DIVERGENT)
    events.measurement("steps", spec["task"]["steps"])


TASKS = {
    "smoke": smoke,
    "memory": memory,
    "confirmation": memory,
    "step_time": step_time,
    "training": training,
    "learning_rate_range": learning_rate_range,
}


def raw(text):
    os.write(int(os.environ["TRIALHEAD_EVENTS_FD"]), text.encode())


def breach(fault):
    """Breaks the contract."""
    json.loads(sys.stdin.read())
    if fault == "silent":
        return
    if fault == "old":
        return raw('{"event":"started","protocol":0,"runner":"old"}\n')
    raw('{"event":"started","protocol":1,"runner":"faulty"}\n')
    measured = (
        '{"event":"measurement","seq":0,"metric":"%s","value":%s,"unit":"%s","elapsed_secs":0.1}\n'
    )
    if fault == "nan":
        raw(measured % ("first_loss", "NaN", "loss"))
    elif fault == "unit":
        raw(measured % ("time_per_step_median", "1.5", "ms"))
    elif fault == "late":
        raw('{"event":"finished"}\n{"event":"progress","phase":"more","fraction":1}\n')
    elif fault == "long":
        raw('{"event":"progress","phase":"%s","fraction":0}\n' % ("x" * 70_000))
    elif fault == "empty":
        raw('{"event":"finished"}\n')
    elif fault == "exception":
        raise ValueError("the images are not where they were")
    elif fault == "memory":
        held = []
        while True:
            held.append(bytearray(64 << 20))
    elif fault == "torch":
        print("Traceback (most recent call last):", file=sys.stderr)
        print(
            "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
            file=sys.stderr,
        )
        sys.exit(1)


class Wandering:
    """Tells another best evaluation each time, by factors."""

    def __init__(self, events):
        self.events = events

    def measurement(self, metric, value, **where):
        if metric == "best_evaluation":
            value *= 10 ** random.SystemRandom().uniform(-3, 3)
        self.events.measurement(metric, value, **where)


if FAULT == "seedless":
    TASKS["training"] = lambda spec, events: training(spec, Wandering(events))
    contract.run("seedless", TASKS)
elif FAULT == "fixed":
    TASKS["training"] = lambda spec, events: training({**spec, "seed": 0}, events)
    contract.run("fixed", TASKS)
elif FAULT == "tied":
    # No fault: of a few seeds that follow each other, some happen to give the same.
    TASKS["training"] = lambda spec, events: training({**spec, "seed": spec["seed"] // 3}, events)
    contract.run("tied", TASKS)
elif FAULT == "no-training":
    del TASKS["training"], TASKS["learning_rate_range"]
    contract.run("untrained", TASKS)
elif FAULT == "unsupported":

    def refuse(spec, events):
        raise Unsupported(f"no model {spec['workload']['model']['family']} here")

    contract.run("refusing", dict.fromkeys(TASKS, refuse))
elif FAULT:
    breach(FAULT)
else:
    contract.run("simulated-1", TASKS)
