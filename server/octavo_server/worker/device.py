"""The device, its dtype and its threads."""

import ctypes
import math
import os
import sys
from pathlib import Path

import torch

from octavo_common.model_config import ModelConfig
from octavo_server.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda". Raises ConfigError if there is no such device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device; use --device cpu, or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """The dtype of weights and cache; "auto" is the model's own on a GPU and float32 on the CPU."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else config.dtype
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and the container's quota if there is one."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, math.ceil(int(quota) / int(period))))


def fix_threads(device: torch.device) -> None:
    """Sets torch's threads once: by the CPUs there are, and never changed, as their number shows in rounding."""
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cpus())


_PR_SET_TIMERSLACK, _SLACK_NANOSECONDS = 29, 1000


def wake_on_time() -> None:
    """Has this thread's sleeps end when they are to; Linux otherwise wakes a thread up to 50 µs later, to save power.

    Whoever waits for a device sleeps for some microseconds at a time. Of no effect elsewhere, or where it is refused.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_SLACK_NANOSECONDS), 0, 0, 0)
