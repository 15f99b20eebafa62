"""The kinds of probes, each as docs/runners.md says, with PyTorch."""

import math
import statistics
import time

import torch

from . import contract, memory, parallel
from .contract import Diverged, Infeasible, Unsupported, check_finite
from .sampling import Sample, in_turn, relative_half_width
from .session import Session, default_evaluate, default_loss, device_of

PROGRESS_SECS = 2.0
# Weight of the newest loss in the smoothed one of a range test.
NEWEST = 0.2
MATMUL_SIZE = 512


class Runner:
    """A runner for one model and one data set.

    `build_model(spec)`: the model, an `nn.Module`, with parameters drawn from PyTorch's generator, which is seeded.
    `batches(split, indices)`: inputs and targets of some examples of "training" or "validation", as tensors on the
    host, examples first; `indices` is a tensor of integers.
    `examples`: how many there are, `{"training": N, "validation": M}`.
    `loss(prediction, targets, workload)`: the mean training loss of a batch. Default: the study's.
    `evaluate(session, with_examples)`: see `default_evaluate`.
    """

    def __init__(
        self,
        build_model,
        batches,
        examples,
        loss=default_loss,
        evaluate=default_evaluate,
        name="pytorch",
    ):
        self.build_model = build_model
        self.batches = batches
        self.examples = examples
        self.loss = loss
        self.evaluate = evaluate
        self.name = name

    def main(self):
        """Runs the probe on standard input."""
        memory.keep_freed_memory()
        tasks = {
            "smoke": self.smoke,
            "memory": self.watched,
            "confirmation": self.watched,
            "step_time": self.step_time,
            "input_pipeline": self.input_pipeline,
            "gradient_accumulation": self.gradient_accumulation,
            "training": self.training,
            "learning_rate_range": self.learning_rate_range,
        }
        name = f"{self.name}/torch-{torch.__version__}"
        contract.run(name, {kind: self._on_devices(task) for kind, task in tasks.items()})

    def _on_devices(self, task):
        """The task in the first of as many processes as there are to be devices."""

        def run(spec, events):
            self.devices = parallel.start(spec)
            if self.devices.rank > 0:
                parallel.follow(self.devices, lambda: self.open(spec))
            task(spec, events)

        return run

    def open(self, spec):
        """A session, once it is known that the study is about these examples."""
        dataset = spec["workload"]["dataset"]
        told = dataset.get("external", {})
        for split in ("training", "validation"):
            count = told.get(f"{split}_examples", self.examples[split])
            if count != self.examples[split]:
                raise Unsupported(
                    f"the study tells of {count} {split} examples, there are {self.examples[split]}"
                )
        return Session(self, spec, self.devices)

    def _alone(self, what):
        if self.devices.count > 1:
            raise Unsupported(f"{what} on one device only, and not on several")

    # Short probes

    def smoke(self, spec, events):
        """A few steps, and the evaluation twice: equal parameters must give equal losses."""
        session = self.open(spec)
        self._train(session, spec["task"]["steps"], events)
        first = session.evaluate()["loss"]
        second = session.evaluate()["loss"]
        events.measurement("steps", session.steps)
        check_finite(first, session.steps)
        events.measurement("validation_loss", first)
        difference = abs(first - second)
        if math.isfinite(difference):
            events.measurement("evaluation_difference", difference)
        if difference != 0.0:
            raise Infeasible(
                "pipeline_broken",
                f"two evaluations of the same parameters gave losses of {first} and {second}",
            )

    def watched(self, spec, events):
        """Steps and one evaluation, with the memory watched."""
        watch = memory.Watch()
        session = self.open(spec)
        self._train(session, spec["task"]["steps"], events)
        loss = check_finite(session.evaluate()["loss"], session.steps)
        if session.device.type == "cuda":
            watch.end()
            peaks = (
                torch.cuda.max_memory_reserved(session.device),
                torch.cuda.max_memory_allocated(session.device),
            )
        else:
            peaks = watch.end()
        if peaks is None:
            raise Infeasible(
                "device_unsupported", "the kernel does not tell the size of the data segments"
            )
        events.measurement("peak_memory", peaks[0])
        events.measurement("peak_resident_memory", peaks[1])
        events.measurement("validation_loss", loss)
        events.measurement("steps", session.steps)

    def _train(self, session, steps, events):
        loss = None
        for step in range(1, steps + 1):
            loss = session.step().item()
            if not (math.isfinite(loss) and session.finish()):
                raise Diverged(step)
            if step == 1:
                events.measurement("first_loss", loss)
            if step % 50 == 0:
                events.progress("training", step / steps)
        if loss is not None:
            events.measurement("last_loss", loss)

    # Times

    def step_time(self, spec, events):
        """Time per step, on batches of training, on one that is staged on the device before, or on both."""
        rule = dict(spec["task"])
        options = spec.get("runner", {}).get("options", {})
        rule["max_secs"] = min(
            rule["max_secs"], options.get("max_sampling_secs", math.inf)
        )
        if rule["canary_secs"] > 0.0:
            events.progress("canary", 0.0)
            canary = self._canary(spec, rule["canary_secs"])
            events.measurement("canary_time_per_step", canary)
        session = self.open(spec)
        batches = rule.get("batches", "both")
        staged = None if batches == "loaded" else session.stage()

        def finish():
            if not session.finish():
                raise Diverged(session.steps)

        def synthetic():
            return session.step_on(staged)

        step = synthetic if batches == "synthetic" else session.step
        events.progress("warming up", 0.1)
        start = time.perf_counter()
        first_loss = step().item()
        finish()
        events.measurement("compile_secs", time.perf_counter() - start)
        events.measurement("first_loss", check_finite(first_loss, session.steps))

        start = time.perf_counter()
        times = []
        while len(times) < max(1, rule["warm_up_steps"]) or (
            time.perf_counter() - start < rule["warm_up_secs"]
        ):
            before = time.perf_counter()
            step()
            finish()
            times.append(time.perf_counter() - before)
        events.measurement("warm_up_secs", time.perf_counter() - start)

        events.progress("sampling", 0.2)
        rough = statistics.median(times[len(times) // 2 :])
        sample = Sample(rule, rough, step, finish, events)
        secs, delays = sample.secs, [sample.delay_secs]
        last_loss = check_finite(step().item(), session.steps)
        for index, (per_step, elapsed) in enumerate(sample.blocks):
            events.measurement(
                "block_time_per_step", per_step, step=index, elapsed_secs=elapsed
            )
        self._summarise(sample, events)
        if batches == "synthetic":
            self._synthetic_times(sample, events)
        events.measurement("steps_per_block", sample.steps_per_block)
        if batches == "both":
            events.progress("sampling synthetic data", 0.6)
            try:
                second = Sample(rule, sample.median, synthetic, finish, events)
            except Diverged:
                # One batch over and over may diverge where training does not: then its time stays unknown.
                pass
            else:
                secs += second.secs
                delays.append(second.delay_secs)
                self._synthetic_times(second, events)
        events.measurement("sampling_secs", secs)
        self._run_queue(spec, secs, delays, events)
        events.measurement("last_loss", last_loss)
        events.measurement("steps", session.steps)

    @staticmethod
    def _summarise(sample, events):
        events.measurement("time_per_step_median", sample.median)
        events.measurement("time_per_step_mean", sample.mean)
        values = sample.sampler.values
        median = relative_half_width(values, statistics.median)
        mean = relative_half_width(values, statistics.fmean)
        if median is not None:
            events.measurement("within_run_median_half_width", median)
        if mean is not None:
            events.measurement("within_run_mean_half_width", mean)
        events.measurement("blocks", len(values))
        events.measurement("converged", float(sample.sampler.converged))

    @staticmethod
    def _synthetic_times(sample, events):
        events.measurement("synthetic_time_per_step_median", sample.median)
        events.measurement("synthetic_time_per_step_mean", sample.mean)

    @staticmethod
    def _run_queue(spec, secs, delays, events):
        if secs > 0.0 and all(delay is not None for delay in delays):
            threads = max(1, spec["device"]["threads"])
            events.measurement("run_queue_delay_ratio", sum(delays) / (secs * threads))

    @staticmethod
    def _canary(spec, secs):
        """Median time of a fixed reference step, seconds: the same for every study, so that two probes whose canaries
        agree ran on a device in the same condition."""
        torch.set_num_threads(spec["device"]["threads"])
        device = device_of(spec)
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(128, 256, generator=generator).to(device)
        labels = torch.randint(10, (128,), generator=generator).to(device)
        model = torch.nn.Sequential(
            torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)
        ).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

        def step():
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            next(model.parameters()).flatten()[0].item()

        step()
        start = time.perf_counter()
        times = []
        while not times or time.perf_counter() - start < secs:
            before = time.perf_counter()
            step()
            times.append(time.perf_counter() - before)
        return statistics.median(times[len(times) // 4 :])

    def input_pipeline(self, spec, events):
        """What a step's time goes into, its parts timed in turn."""
        self._alone("the parts of a step are timed")
        session = self.open(spec)
        pipeline = spec["workload"].get("input_pipeline", {})
        threads = max(1, pipeline.get("threads", 0))
        prefetch = max(1, pipeline.get("prefetch_batches", 2))
        staged = session.stage()
        loader = session.open_loader(0, prefetch)
        gathered = loader.next()
        left = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=session.device)
        right = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=session.device)

        def timed(body):
            def of(steps):
                start = time.perf_counter()
                for _ in range(steps):
                    body()
                session.finish()
                return time.perf_counter() - start

            return of

        def prefetched(steps):
            ahead = session.open_loader(threads, prefetch)
            # What is ready when the clock starts was not loaded for free.
            for _ in range(prefetch + 1):
                session.step_from(ahead)
            session.finish()
            start = time.perf_counter()
            for _ in range(steps):
                session.step_from(ahead)
            session.finish()
            took = time.perf_counter() - start
            ahead.close()
            return took

        def load(steps):
            start = time.perf_counter()
            for _ in range(steps):
                loader.next()
            return time.perf_counter() - start

        def transfer(steps):
            # A copy, also where host and device are one.
            start = time.perf_counter()
            for _ in range(steps):
                for part in gathered:
                    part.to(session.device, copy=True)
            session.synchronise()
            return time.perf_counter() - start

        def forward(steps):
            total = 0.0
            for _ in range(steps):
                start = time.perf_counter()
                loss = session.loss(staged)
                session.synchronise()
                total += time.perf_counter() - start
                loss.backward()
            return total

        def matmul(steps):
            start = time.perf_counter()
            for _ in range(steps):
                left @ right
            session.synchronise()
            return time.perf_counter() - start

        parts = {
            "prefetched_time_per_step": prefetched,
            "unprefetched_time_per_step": timed(lambda: session.step_from(loader)),
            "load_time_per_step": load,
            "transfer_time_per_step": transfer,
            "synthetic_time_per_step": timed(lambda: session.step_on(staged)),
            "readback_time_per_step": timed(lambda: session.step_on(staged).item()),
            "forward_time_per_step": forward,
            "forward_backward_time_per_step": timed(
                lambda: session.loss(staged).backward()
            ),
            "matmul_rate": matmul,
        }
        times, secs, delay = in_turn(list(parts.values()), spec["task"], events)
        self._run_queue(spec, secs, [delay], events)
        for metric, took in zip(parts, times):
            is_rate = metric == "matmul_rate"
            events.measurement(metric, 2.0 * MATMUL_SIZE**3 / took if is_rate else took)
        events.measurement("steps", session.steps)

    def gradient_accumulation(self, spec, events):
        """A step on the gradients of several micro-batches against plain steps, in turn."""
        self._alone("gradient accumulation is timed")
        task = spec["task"]
        count = task["micro_batches"]
        session = self.open(spec)
        micro = session.stage()

        def timed(body):
            def of(steps):
                start = time.perf_counter()
                for _ in range(steps):
                    body()
                session.finish()
                return time.perf_counter() - start

            return of

        variants = {
            "synthetic_time_per_step": timed(lambda: session.step_on(micro)),
            "forward_backward_time_per_step": timed(
                lambda: session.loss(micro).backward()
            ),
            "accumulated_time_per_step": timed(
                lambda: session.accumulated_step(micro, count)
            ),
        }
        if task["with_whole_batch"]:
            whole = session.stage(session.batch_size * count)
            variants["whole_batch_time_per_step"] = timed(
                lambda: session.step_on(whole)
            )
        times, secs, delay = in_turn(list(variants.values()), task["sampling"], events)
        self._run_queue(spec, secs, [delay], events)
        for metric, took in zip(variants, times):
            events.measurement(metric, took)
        events.measurement("steps", session.steps)

    # Training

    def training(self, spec, events):
        """One point of hyperparameters, trained to a target, to its cap or to divergence."""
        task = spec["task"]
        target = task.get("target")
        compares = task.get("compares_with_chance", False)
        start = time.perf_counter()
        session = self.open(spec)
        of_loss = {
            "cross_entropy": "validation_cross_entropy",
            "mean_squared_error": "validation_mean_squared_error",
        }[spec["workload"]["loss"]]
        watched = target["metric"] if target else of_loss
        crossing = Crossing(target) if target else None
        best = None
        followed = []
        losses, last_loss = [], None
        reached = None
        evaluating, next_evaluation, reported = 0.0, 0, time.perf_counter()
        while True:
            step = session.steps
            if step >= next_evaluation or step >= task["max_steps"]:
                before = time.perf_counter()
                found = session.evaluate(compares)
                evaluating += time.perf_counter() - before
                check_finite(found["loss"], step)
                if losses:
                    events.measurement(
                        "training_loss", statistics.fmean(losses), step=step
                    )
                    losses = []
                for metric, value in found["metrics"].items():
                    if math.isfinite(value):
                        events.measurement(metric, value, step=step)
                if watched not in found["metrics"]:
                    raise Unsupported(f"the evaluation gives no {watched}")
                value = found["metrics"][watched]
                score = value if is_minimized(watched) else -value
                if best is None or score < best["score"]:
                    best = {"score": score, "value": value, "step": step, "found": found}
                followed.append((step, score))
                if crossing is not None:
                    reached = crossing.push(step, value)
                    if reached is not None:
                        break
                if step >= task["max_steps"]:
                    break
                next_evaluation = max(
                    step + 1, math.ceil(step * task["evaluation_ratio"])
                )
            loss = check_finite(session.step().item(), session.steps)
            if session.steps == 1:
                events.measurement("first_loss", loss)
            losses.append(loss)
            last_loss = loss
            if time.perf_counter() - reported >= PROGRESS_SECS:
                reported = time.perf_counter()
                share = session.steps / max(1, task["max_steps"])
                events.progress("training", min(1.0, share))
        total = time.perf_counter() - start
        if reached is not None:
            events.measurement("steps_to_target", reached)
        events.measurement("validation_loss", found["loss"])
        events.measurement("best_evaluation", best["value"])
        events.measurement("best_step", best["step"])
        if compares:
            self._compare_with_chance(session, best, followed, task, events)
        if target is None or compares:
            # A run without a target is to set one, and for that it must be known what learning is worth.
            chance = self._chance_losses(session)
            if chance is not None:
                weighted = statistics.fmean(chance)
                events.measurement("chance_loss", weighted)
        if last_loss is not None:
            events.measurement("last_loss", last_loss)
        events.measurement("steps", session.steps)
        events.measurement("evaluation_share", min(1.0, evaluating / total))

    def _compare_with_chance(self, session, best, followed, task, events):
        early = task["max_steps"] * 3 // 4
        least = min(score for _, score in followed)
        before = [score for step, score in followed if step <= early]
        if followed[0][1] > least and before:
            gained = (min(before) - least) / (followed[0][1] - least)
            events.measurement("late_gain", gained)
        accuracy = best["found"]["metrics"].get("validation_accuracy")
        if accuracy is not None:
            events.measurement("best_accuracy", accuracy)
        losses = best["found"]["examples"]
        if len(losses) > 1:
            events.measurement("best_evaluation_error", standard_error(losses))
        chance = self._chance_losses(session)
        if chance is not None and len(losses) == len(chance) > 1:
            gains = [worst - loss for worst, loss in zip(chance, losses)]
            events.measurement("gain_over_chance", statistics.fmean(gains))
            events.measurement("gain_over_chance_error", standard_error(gains))

    def _chance_losses(self, session):
        """Validation loss of every example under the best predictor that does not look at its input: the frequencies of
        the training labels, or the mean of each value. None where a label was never seen."""
        is_classes = session.workload["loss"] == "cross_entropy"
        everything = torch.arange(session.training_examples).split(4096)
        targets = torch.cat([self.batches("training", it)[1] for it in everything])
        found = []
        if is_classes:
            counts = torch.bincount(targets.reshape(-1)).double()
            losses = -(counts / counts.sum()).log()
        else:
            mean = targets.double().mean(dim=0)
        for chunk in session.validated.split(4096):
            held = self.batches("validation", chunk)[1]
            if is_classes:
                if int(held.max()) >= len(losses):
                    return None
                found += losses[held].reshape(len(held), -1).mean(dim=1).tolist()
            else:
                squares = (held.double() - mean).square()
                found += squares.reshape(len(held), -1).mean(dim=1).tolist()
        return found if all(math.isfinite(loss) for loss in found) else None

    def learning_rate_range(self, spec, events):
        """The learning rate rises by the same factor in every step until training diverges (Smith 2017)."""
        task = spec["task"]
        session = self.open(spec)
        factor = math.log(task["upper"] / task["lower"]) / (max(2, task["steps"]) - 1)
        smoothed, least, reported = None, math.inf, time.perf_counter()
        for index in range(task["steps"]):
            session.learning_rate = task["lower"] * math.exp(factor * index)
            loss = session.step().item()
            if math.isfinite(loss):
                events.measurement("training_loss", loss, step=session.steps)
            smoothed = loss if smoothed is None else smoothed + NEWEST * (loss - smoothed)
            least = min(least, smoothed)
            if not math.isfinite(loss) or smoothed > task["divergence_ratio"] * least:
                events.measurement("divergent_learning_rate", session.learning_rate)
                break
            if time.perf_counter() - reported >= PROGRESS_SECS:
                reported = time.perf_counter()
                events.progress("raising the learning rate", index / task["steps"])
        events.measurement("steps", session.steps)


def is_minimized(metric):
    return metric not in ("validation_accuracy", "validation_auc")


def standard_error(values):
    return statistics.stdev(values) / math.sqrt(len(values))


class Crossing:
    """Watches a metric until it has passed its target at two evaluations in a row; the crossing is interpolated between
    the evaluations around it, in the logarithm for a loss."""

    def __init__(self, target):
        self.metric = target["metric"]
        self.target = target["value"]
        self.before = None
        self.passed = None

    def push(self, step, value):
        if is_minimized(self.metric):
            passes = value <= self.target
        else:
            passes = value >= self.target
        if not passes:
            self.before, self.passed = (step, value), None
            return None
        if self.passed is None:
            self.passed = (step, value)
            return None
        return self._interpolate(*self.passed)

    def _interpolate(self, after, low):
        if self.before is None:
            return after
        before, high = self.before
        target = self.target
        if self.metric in ("validation_cross_entropy", "validation_mean_squared_error"):
            if min(low, target) <= 0.0:
                return after
            high, low, target = math.log(high), math.log(low), math.log(target)
        if low == high:
            return after
        share = min(1.0, max(0.0, (target - high) / (low - high)))
        return before + share * (after - before)
