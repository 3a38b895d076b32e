"""What the work runs on, decided once at the edge; how tensors are computed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from patchguard.errors import PatchGuardError
from patchguard.reporter import Reporter, Silent


@dataclass(frozen=True)
class Runtime:
    """What a verb runs on, and whom it tells.

    Attributes:
        device: that computes.
        threads: of the processor.
        reporter: where messages and progress go.
    """

    device: torch.device
    threads: int
    reporter: Reporter

    @classmethod
    def on(cls, device: str = "auto", reporter: Reporter | None = None) -> Runtime:
        """A runtime on a device by its name, silent unless there is a reporter.

        Raises:
            PatchGuardError: the device is unknown or absent.
        """
        return cls(named_device(device), torch.get_num_threads(), reporter or Silent())

    @property
    def described(self) -> str:
        """One phrase for the records."""
        return f"{self.device}, {self.threads} threads"

    @property
    def gpus(self) -> tuple[torch.device, ...]:
        """Those that may be used at once: all, unless one was named by its number."""
        if self.device.type != "cuda":
            return ()
        if self.device.index is not None:
            return (self.device,)
        return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))


def named_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1`` or ``mps``; ``auto`` is the GPU if CUDA has one, else the CPU.

    Raises:
        PatchGuardError: the device is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if not (name in ("cpu", "cuda", "mps") or (kind == "cuda" and number.isdecimal())):
        raise PatchGuardError(f"--device {name}: give one of cpu, cuda, cuda:1, mps and auto")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise PatchGuardError(f"--device {name}: torch can use no Apple GPU here; give cpu or auto")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise PatchGuardError(
                f"--device {name}: torch can use no NVIDIA GPU here; give cpu or auto"
            )
        if number and int(number) >= count:
            raise PatchGuardError(f"--device {name}: the last GPU here is cuda:{count - 1}")
    return torch.device(name)


_lock = threading.Lock()
_inside = 0
_before = ("highest", True)


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 as it is, without TF32, wherever scores are judged; what was set before comes back.

    The settings are those of the process: of several threads inside, the first sets them and the
    last puts them back.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
            _set("highest", False)
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            _set(*_before)


def _set(matmul: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions
