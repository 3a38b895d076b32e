"""How tensors are computed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
