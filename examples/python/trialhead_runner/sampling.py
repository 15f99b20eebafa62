"""When a time is known well enough. The rules are Trialhead's (docs/methods.md), the arithmetic plain Python."""

import glob
import math
import statistics
import time

# From this time per step on, a block is one step, and as many are made as must be.
SLOW_STEP_SECS = 1.0
# Fewer blocks give no interval, and none are dropped.
MIN_BLOCKS = 40
BATCHES = 20
# Student's t with 19 degrees of freedom, two-sided 95%.
T_19 = 2.093
DRIFT_MARGIN = 0.35
SURE_DRIFT = 3.0
GOOD_LOOKS = 2


def _of_batches(values, statistic):
    if len(values) < MIN_BLOCKS:
        return None
    edges = [len(values) * index // BATCHES for index in range(BATCHES + 1)]
    return [statistic(values[start:end]) for start, end in zip(edges, edges[1:])]


def relative_half_width(values, statistic):
    """Half-width of the 95% interval of a statistic, from 20 batches, relative to it; None with too few blocks."""
    batches = _of_batches(values, statistic)
    if batches is None:
        return None
    return T_19 * statistics.stdev(batches) / math.sqrt(BATCHES) / statistic(values)


class BlockSampler:
    """Collects times per step, block by block, and says when there are enough."""

    def __init__(self, rule):
        self.rule = rule
        self.values = []
        self.dropped = 0
        self.next_look = max(1, rule["first_look_blocks"])
        self.good_looks = 0
        self.converged = False
        self.is_over = False

    def push(self, time_per_step):
        self.values.append(time_per_step)
        if self.is_over:
            return True
        timed = len(self.values) + self.dropped
        at_cap = timed >= self.rule["max_blocks"]
        if timed >= self.next_look or at_cap:
            self._look()
            self.next_look = max(math.ceil(timed * self.rule["growth"]), timed + 1)
        self.converged = self.good_looks >= GOOD_LOOKS
        self.is_over = self.converged or at_cap
        return self.is_over

    def _look(self):
        drift = self._drift()
        is_steady = drift is not None and drift <= self.rule["drift"]
        if is_steady and self._is_narrow():
            self.good_looks += 1
            return
        self.good_looks = 0
        drifts = not is_steady and (self._is_narrow() or self._drifts_surely())
        if drifts and len(self.values) >= MIN_BLOCKS:
            oldest = len(self.values) // 4
            del self.values[:oldest]
            self.dropped += oldest

    def _drift(self):
        third = len(self.values) // 3
        if third == 0:
            return None
        first = statistics.median(self.values[:third])
        last = statistics.median(self.values[-third:])
        margin = relative_half_width(self.values, statistics.median) or 0.0
        return abs(first / last - 1.0) + margin * DRIFT_MARGIN

    def _drifts_surely(self):
        batches = _of_batches(self.values, statistics.median)
        if batches is None:
            return False
        third = len(batches) // 3
        squares = sum((b - a) ** 2 for a, b in zip(batches, batches[1:]))
        error = math.sqrt(2.0 * squares / (2.0 * (len(batches) - 1)) / third)
        first, last = batches[:third], batches[-third:]
        return abs(statistics.fmean(first) - statistics.fmean(last)) > SURE_DRIFT * error

    def _is_narrow(self):
        median = relative_half_width(self.values, statistics.median)
        mean = relative_half_width(self.values, statistics.fmean)
        return (
            median is not None
            and median <= self.rule["median_half_width"]
            and mean is not None
            and mean <= self.rule["mean_half_width"]
        )


def steps_in(block_secs, time_per_step):
    return max(1, math.ceil(block_secs / max(time_per_step, 1e-9)))


class Sample:
    """Blocks of steps, timed until the rule is content or a cap is hit. `step()` makes one step, `finish()` waits for
    the device: it is synchronised at the borders of blocks only, because to synchronise every step would hide the
    overlap of host and device."""

    def __init__(self, rule, rough, step, finish, events):
        is_slow = rough > SLOW_STEP_SECS
        self.steps_per_block = 1 if is_slow else steps_in(rule["block_secs"], rough)
        self.sampler = BlockSampler(rule)
        self.blocks = []
        steps = 0
        delay = RunQueueDelay()
        start = time.perf_counter()
        while True:
            before = time.perf_counter()
            for _ in range(self.steps_per_block):
                step()
            finish()
            per_step = (time.perf_counter() - before) / self.steps_per_block
            self.blocks.append((per_step, events.elapsed_secs()))
            steps += self.steps_per_block
            enough = (
                self.sampler.push(per_step)
                or is_slow
                or time.perf_counter() - start >= rule["max_secs"]
            )
            if enough and steps >= rule["min_steps"]:
                break
        self.secs = time.perf_counter() - start
        self.delay_secs = delay.secs()
        self.median = statistics.median(self.sampler.values)
        self.mean = statistics.fmean(self.sampler.values)


def in_turn(variants, rule, events):
    """Times variants of a step in turn, a block of each a round, so that what slows the host for a while slows all of
    them alike. Each is a function of a number of steps that gives the seconds they took. Gives the medians."""
    events.progress("warming up", 0.1)
    start = time.perf_counter()
    rough = [math.inf] * len(variants)
    warmed = 0
    while warmed < max(1, rule["warm_up_steps"]) or (
        time.perf_counter() - start < rule["warm_up_secs"]
    ):
        for index, timed in enumerate(variants):
            rough[index] = min(rough[index], timed(1))
        warmed += 1
    events.measurement("warm_up_secs", time.perf_counter() - start)
    events.progress("sampling", 0.2)
    delay = RunQueueDelay()
    start = time.perf_counter()
    times = [[] for _ in variants]
    rounds = 0
    while rounds < max(1, rule["min_rounds"]) or (
        rounds < rule["max_rounds"] and time.perf_counter() - start < rule["max_secs"]
    ):
        for timed, fast, found in zip(variants, rough, times):
            steps = steps_in(rule["block_secs"], fast)
            found.append(timed(steps) / steps)
        rounds += 1
    secs = time.perf_counter() - start
    events.measurement("sampling_secs", secs)
    events.measurement("blocks", rounds)
    return [statistics.median(found) for found in times], secs, delay.secs()


class RunQueueDelay:
    """For how long the process's threads were ready to run and had no processor; None where the kernel does not tell."""

    def __init__(self):
        self._before = self._read()

    @staticmethod
    def _read():
        total = 0
        try:
            for path in glob.glob("/proc/self/task/*/schedstat"):
                with open(path, encoding="ascii") as file:
                    total += int(file.read().split()[1])
        except (OSError, IndexError, ValueError):
            return None
        return total or None

    def secs(self):
        after = self._read()
        if self._before is None or after is None:
            return None
        return max(0, after - self._before) * 1e-9
