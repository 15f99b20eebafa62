"""Training of one workload at one batch size with PyTorch."""

import math
import queue
import threading

import torch
import torch.nn.functional as F

from . import optimizers, parallel
from .contract import Unsupported

# Draws the subset of validation examples: the same in every probe.
_SUBSET_SEED = 0
# Keeps the order of a control's targets apart from what else the seed draws.
_SHUFFLE_SEED = 0x5F0FF1E5


class Order:
    """A fresh permutation for each epoch, cut into batches, the last partial batch dropped. A batch larger than the
    data set is filled with one permutation after the other."""

    def __init__(self, examples, batch_size, seed):
        self.examples = examples
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.permutation = None
        self.position = examples

    def next(self):
        if self.batch_size > self.examples:
            whole, rest = divmod(self.batch_size, self.examples)
            pieces = [self._permuted() for _ in range(whole)]
            if rest:
                pieces.append(self._permuted()[:rest])
            return torch.cat(pieces)
        if self.position + self.batch_size > self.examples:
            self.permutation = self._permuted()
            self.position = 0
        start = self.position
        self.position += self.batch_size
        return self.permutation[start : self.position]

    def _permuted(self):
        return torch.randperm(self.examples, generator=self.generator)


class Loader:
    """Gathers batches: each when it is asked for, or ahead in a thread, `prefetch` of them."""

    def __init__(self, gather, order, threads, prefetch):
        self._gather = gather
        self._order = order
        self._ready = None
        if threads > 0:
            # One thread keeps the order; Python's would wait for each other anyway.
            self._ready = queue.Queue(maxsize=max(1, prefetch))
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def _work(self):
        while not self._stop.is_set():
            try:
                batch = self._gather(self._order.next())
            except BaseException as error:  # told to whoever waits for the batch
                batch = error
            while not self._stop.is_set():
                try:
                    self._ready.put(batch, timeout=0.05)
                    break
                except queue.Full:
                    continue

    def next(self):
        if self._ready is None:
            return self._gather(self._order.next())
        batch = self._ready.get()
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def close(self):
        if self._ready is not None:
            self._stop.set()
            self._thread.join()


class Session:
    """The model, its optimizer, the examples and their order, all from the specification's seed."""

    def __init__(self, runner, spec, devices):
        self.runner = runner
        self.devices = devices
        self.spec = spec
        self.workload = spec["workload"]
        self.device = device_of(spec)
        torch.set_num_threads(spec["device"]["threads"])
        self.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[
            self.workload.get("dtype", "float32")
        ]
        self.batch_size = spec["batch_size"]
        self.training_examples = runner.examples["training"]
        self.targets_of = None
        if spec["task"].get("shuffles_targets", False):
            generator = torch.Generator().manual_seed(spec["seed"] ^ _SHUFFLE_SEED)
            self.targets_of = torch.randperm(
                self.training_examples, generator=generator
            )
        torch.manual_seed(spec["seed"])
        self.model = runner.build_model(spec).to(device=self.device, dtype=self.dtype)
        if devices.rank > 0:
            # Parameters begin alike; what is drawn from here on, dropout's masks, is each device's own.
            torch.manual_seed(spec["seed"] + devices.rank)
        self.model.train()
        self.parameters = [it for it in self.model.parameters() if it.requires_grad]
        self.optimizer = optimizers.build(spec["optimizer"], self.parameters)
        self.learning_rate = spec["optimizer"]["learning_rate"]
        self.schedule = spec.get("schedule", {})
        self.clipping = spec.get("gradient_clipping", {})
        self.reads_loss_every_step = self.workload.get("read_loss_every_step", False)
        self.steps = 0
        pipeline = self.workload.get("input_pipeline", {})
        self.loader = self.open_loader(
            pipeline.get("threads", 0), pipeline.get("prefetch_batches", 2)
        )
        self.validated = self._validated()

    def _validated(self):
        count = self.runner.examples["validation"]
        wanted = self.workload.get("validation_examples")
        if wanted is None or wanted >= count:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(_SUBSET_SEED)
        return torch.randperm(count, generator=generator)[:wanted].sort().values

    def open_loader(self, threads, prefetch):
        order = Order(self.training_examples, self.batch_size, self.spec["seed"])
        return Loader(self.gather, order, threads, prefetch)

    def gather(self, indices):
        indices = self.devices.share(indices)
        inputs, targets = self.runner.batches("training", indices)
        if self.targets_of is not None:
            targets = self.runner.batches("training", self.targets_of[indices])[1]
        return inputs, targets

    def stage(self, examples=None):
        """A batch on the device: what a step on it takes is without its input pipeline."""
        size = self.batch_size if examples is None else examples
        order = Order(self.training_examples, size, self.spec["seed"])
        return self.to_device(self.gather(order.next()))

    def to_device(self, batch):
        return tuple(self._placed(part) for part in batch)

    def _placed(self, part):
        if part.is_floating_point():
            return part.to(device=self.device, dtype=self.dtype)
        return part.to(device=self.device)

    def loss(self, batch):
        inputs, targets = batch
        return self.runner.loss(self.model(inputs), targets, self.workload)

    def update(self):
        optimizers.clip(self.clipping, self.parameters)
        self.steps += 1
        rate = self.learning_rate * optimizers.schedule_factor(self.schedule, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def step_on(self, batch):
        """One optimizer step. The loss stays on the device: to read it waits for the device."""
        self.devices.tell(parallel.STAGED, self.learning_rate)
        return self._step_on(batch)

    def _step_on(self, batch):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        loss.backward()
        loss = self.devices.average(self.parameters, loss.detach())
        self.update()
        return loss

    def step_from(self, loader):
        self.devices.tell(parallel.LOADED, self.learning_rate)
        return self._step_on(self.to_device(loader.next()))

    def step(self):
        """One optimizer step on the next batch, as the study trains."""
        loss = self.step_from(self.loader)
        if self.reads_loss_every_step:
            loss.item()
        return loss

    def accumulated_step(self, batch, micro_batches):
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(micro_batches):
            (self.loss(batch) / micro_batches).backward()
        self.update()

    def synchronise(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def finish(self):
        """Waits for the device, and says whether the parameters are still numbers."""
        is_finite = math.isfinite(self.parameters[0].flatten()[0].item())
        self.synchronise()
        return is_finite

    def evaluate(self, with_examples=False):
        """Metrics of the validation examples, the mean loss as `loss`, and the loss of every example. In chunks of at
        most a training batch, so that it never needs more memory than training."""
        self.model.eval()
        with torch.no_grad():
            found = self.runner.evaluate(self, with_examples)
        self.model.train()
        return found

    def validation_chunks(self):
        for chunk in self.validated.split(self.batch_size // self.spec["device"].get("count", 1)):
            yield self.to_device(self.runner.batches("validation", chunk))


def device_of(spec):
    """PyTorch's device for the specification's."""
    backend = spec["device"]["backend"]
    if backend == "cpu":
        return torch.device("cpu")
    if backend in ("cuda", "rocm") and torch.cuda.is_available():
        device = torch.device("cuda")
        # Nobody limits a GPU's memory from outside: what is over the budget must fail here.
        share = spec["limits"]["memory_bytes"] / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
        return device
    if backend == "metal" and torch.backends.mps.is_available():
        return torch.device("mps")
    raise Unsupported(f"PyTorch finds no {backend} device here")


def default_loss(prediction, targets, workload):
    """The loss that the study names, in single precision."""
    prediction = prediction.float()
    if workload["loss"] == "cross_entropy":
        # A language model predicts at every position.
        rows = prediction.reshape(-1, prediction.shape[-1])
        smoothing = workload.get("label_smoothing", 0.0)
        return F.cross_entropy(rows, targets.reshape(-1), label_smoothing=smoothing)
    return F.mse_loss(prediction, targets.float())


def default_evaluate(session, with_examples):
    """What the study's loss is judged by: cross-entropy, accuracy and error rate, or the mean squared error."""
    is_classes = session.workload["loss"] == "cross_entropy"
    total, right, rows, examples = 0.0, 0, 0, []
    for inputs, targets in session.validation_chunks():
        prediction = session.model(inputs).float()
        if is_classes:
            scores = prediction.reshape(-1, prediction.shape[-1])
            labels = targets.reshape(-1)
            losses = F.cross_entropy(scores, labels, reduction="none")
            right += int((scores.argmax(dim=-1) == labels).sum())
        else:
            losses = (prediction - targets.float()).square().flatten()
        total += float(losses.double().sum())
        rows += losses.numel()
        if with_examples:
            examples += losses.reshape(len(targets), -1).double().mean(dim=1).tolist()
    loss = total / rows
    if is_classes:
        metrics = {
            "validation_cross_entropy": loss,
            "validation_accuracy": right / rows,
            "validation_error_rate": 1.0 - right / rows,
        }
        if targets.dim() > 1:
            # A text: at each position, the token that comes next.
            metrics["validation_perplexity"] = math.exp(min(loss, 700.0))
    else:
        metrics = {"validation_mean_squared_error": loss}
    return {"loss": loss, "metrics": metrics, "examples": examples}
