"""Peak memory of the process: of what the worker limits, which on the CPU are the data segments (RLIMIT_DATA)."""

import ctypes
import threading

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_PERIOD_SECS = 0.002


def keep_freed_memory():
    """Makes the C library keep freed memory for the next step instead of giving it back to the kernel each time:
    else page faults cost up to half of a step, and more at some batch sizes than at others."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
        # One heap for all threads: each further one would reserve address space that nothing is in.
        libc.mallopt(_M_ARENA_MAX, 1)
    except (OSError, AttributeError):
        pass


def _status():
    """The sizes in /proc/self/status, bytes; empty where there is none."""
    sizes = {}
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if name.startswith("Vm"):
                    sizes[name] = int(rest.split()[0]) * 1024
    except OSError:
        pass
    return sizes


class Watch:
    """Watches the data segments from now on. A thread looks at them every 2 ms; and the kernel keeps the peak of all
    mappings, from which that of the data follows as long as nothing else is mapped meanwhile. So a peak between two
    looks is not missed."""

    def __init__(self):
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self):
        while not self._stop.wait(_PERIOD_SECS):
            self.look()

    def look(self):
        self._peak = max(self._peak, _status().get("VmData", 0))

    def end(self):
        """(peak of the data segments, peak of resident memory), bytes; None where the kernel does not tell."""
        self._stop.set()
        self._thread.join()
        self.look()
        sizes = _status()
        if not {"VmPeak", "VmSize", "VmData", "VmHWM"} <= sizes.keys():
            return None
        by_kernel = sizes["VmPeak"] - (sizes["VmSize"] - sizes["VmData"])
        return max(self._peak, by_kernel), sizes["VmHWM"]
