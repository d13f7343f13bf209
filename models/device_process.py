"""What torch keeps for a whole process, and what it says when a device fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from models.profiles import Profile
from pipeline.errors import DeviceUnavailable


def set_precision(profile: Profile) -> None:
    """Allow TF32 or forbid it: PyTorch keeps that for the whole process."""
    torch.set_float32_matmul_precision("high" if profile.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = profile.precision == "tf32"
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


@contextmanager
def reporting(device: torch.device) -> Iterator[None]:
    """Turn what a lost or full device raises into `DeviceUnavailable`."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError) or device.type == "cuda"
        if not lost:
            raise
        raise DeviceUnavailable(f"device {device} failed, go on with device = 'cpu': {error}") from error
