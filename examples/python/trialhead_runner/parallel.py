"""Data-parallel training over several processes: `device.count` of them, each with its share of every batch.

The first process runs the probe; the others make the steps that it tells them to. Gradients are averaged with
torch.distributed: gloo on the CPU, NCCL on GPUs. Every process draws the same parameters and the same order of examples
from the seed, and takes every n-th example of a batch; so the batch size is that of all devices together.
"""

import os
import signal
import socket
import struct
import sys

import torch
import torch.distributed as dist

from .contract import Unsupported

# What the first process tells the others: which step, and its learning rate.
_MESSAGE = struct.Struct("<cd")
LOADED = b"l"
STAGED = b"s"


class Alone:
    """One device: nobody to tell, nothing to average."""

    rank = 0
    count = 1

    def share(self, indices):
        return indices

    def tell(self, step, learning_rate):
        pass

    def average(self, parameters, loss):
        return loss


class Together(Alone):
    """One of several devices."""

    def __init__(self, rank, count, pipes, first):
        self.rank = rank
        self.count = count
        self._pipes = pipes
        self._first = first

    def end_first(self):
        """Ends the first process, which would wait for this one in vain; one that has ended already left its children to
        somebody else."""
        if os.getppid() == self._first:
            os.kill(self._first, signal.SIGKILL)

    def share(self, indices):
        return indices[self.rank :: self.count]

    def tell(self, step, learning_rate):
        """The first process says what all do next."""
        if self.rank == 0:
            for pipe in self._pipes:
                os.write(pipe, _MESSAGE.pack(step, learning_rate))

    def hear(self):
        """The others wait for it; None when the first process has ended."""
        message = b""
        while len(message) < _MESSAGE.size:
            piece = os.read(self._pipes[0], _MESSAGE.size - len(message))
            if not piece:
                return None
            message += piece
        return _MESSAGE.unpack(message)

    def average(self, parameters, loss):
        """Averages gradients and loss over the devices, in one reduction; gives the loss."""
        gradients = [it.grad for it in parameters if it.grad is not None]
        parts = [it.reshape(-1) for it in [*gradients, loss.to(gradients[0].dtype)]]
        flat = torch.cat(parts)
        dist.all_reduce(flat)
        flat /= self.count
        at = 0
        for gradient in gradients:
            size = gradient.numel()
            gradient.copy_(flat[at : at + size].view_as(gradient))
            at += size
        return flat[at].to(loss.dtype)


def start(spec):
    """Starts the other processes of a probe. Returns in each of them, with its own view."""
    count = spec["device"].get("count", 1)
    if count == 1:
        return Alone()
    if spec["batch_size"] % count != 0:
        raise Unsupported(
            f"a batch of {spec['batch_size']} cannot be shared out evenly among {count} devices"
        )
    on_gpu = spec["device"]["backend"] in ("cuda", "rocm")
    if on_gpu and torch.cuda.device_count() < count:
        raise Unsupported(f"{count} devices are asked for, {torch.cuda.device_count()} are here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Before anything else starts a thread: a copy of a process with threads would have them half.
    pipes = []
    rank = 0
    first = os.getpid()
    for other in range(1, count):
        reader, writer = os.pipe()
        if os.fork() == 0:
            for pipe in [*pipes, writer]:
                os.close(pipe)
            rank, pipes = other, [reader]
            break
        os.close(reader)
        pipes.append(writer)
    if on_gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=count,
    )
    return Together(rank, count, pipes, first)


def follow(devices, open_session):
    """What a process but the first does: the steps that it is told, until there are no more. Never returns."""
    try:
        session = open_session()
        staged = session.stage()
        while True:
            message = devices.hear()
            if message is None:
                os._exit(0)
            step, session.learning_rate = message
            session.step_on(staged) if step == STAGED else session.step()
    except BaseException as error:  # told to the worker, whatever it is
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        devices.end_first()
        os._exit(1)
