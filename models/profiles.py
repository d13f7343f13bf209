"""Serving profiles: which device, in which precision, many rows at a time or one.

Each of the three changes the low bits of a score, or more of it, so thresholds hold for the profile they were fitted
through. A bundle carries a calibration for every profile it may be served on, under the profile's name.

    cpu-float32  cpu-bfloat16  cpu-int8  cpu-float32-latency  cuda-float32  cuda-tf32  cuda-bfloat16
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pipeline.bundle import Bundle
from pipeline.errors import ConfigError

Precision = Literal["float32", "tf32", "bfloat16", "int8"]
Priority = Literal["throughput", "latency"]

PRECISIONS: Mapping[str, tuple[Precision, ...]] = {
    "cpu": ("float32", "bfloat16", "int8"),
    "cuda": ("float32", "tf32", "bfloat16"),
}

_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # what CPUs call it


class Profile(NamedTuple):
    """One way to serve.

    Parameters
    ----------
    device : `cpu`, `cuda` or `cuda:<number>`; the number is no part of the name.
    precision : of the products of a member's layers; windows, residuals and errors are float32 in every profile.
    priority : `throughput` scores rows in batches, `latency` one by one (on the CPU, in float32).
    """

    device: str = "cpu"
    precision: Precision = "float32"
    priority: Priority = "throughput"

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        return self.device.partition(":")[0]

    @property
    def needs_torch(self) -> bool:
        """Whether torch is what multiplies; the other profiles do without it."""
        return self.kind == "cuda" or self.precision == "bfloat16"

    @property
    def name(self) -> str:
        """What calibrations are kept under."""
        return f"{self.kind}-{self.precision}" + ("-latency" if self.priority == "latency" else "")


FALLBACK = Profile()  # what every bundle is calibrated for, and every host can serve


def all_profiles() -> tuple[Profile, ...]:
    """Return every profile there is."""
    batches = [Profile(kind, precision) for kind, known in PRECISIONS.items() for precision in known]
    return (*batches, Profile(priority="latency"))


def by_name(name: str) -> Profile:
    """Return the profile of that name.

    Raises
    ------
    ConfigError : there is none.
    """
    known = {profile.name: profile for profile in all_profiles()}
    if name not in known:
        raise ConfigError("train.profiles", name, f"choose from {', '.join(known)}")
    return known[name]


def slow_here(profile: Profile) -> str:
    """Return why a profile is slower than float32 on this machine; empty: nothing is known against it."""
    if profile.kind != "cpu" or profile.precision != "bfloat16":
        return ""
    import torch

    can = torch.cpu.get_capabilities()
    if any(can.get(name) for name in _BFLOAT16):
        return ""
    return "this CPU has no bfloat16 instructions, float32 is several times faster on it"


def cuda_devices() -> int:
    """Return how many CUDA devices this process sees; torch is imported only where there is a driver to ask."""
    if not _has_driver():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _has_driver() -> bool:
    """Return whether the library of NVIDIA's driver is here, without which torch finds no device."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def choose(
    device: str = "auto",
    precision: Precision = "float32",
    priority: Priority = "throughput",
    bundle: Bundle | None = None,
) -> Profile:
    """Return the profile that a host serves, or trains for, when it asks for these.

    Parameters
    ----------
    device : `auto` is CUDA where this machine has it, it knows the precision, and the bundle was calibrated for that;
        else the CPU. A CPU has no TF32: with `auto` it serves float32 then.
    bundle : None: one that is yet to be calibrated.

    Raises
    ------
    ConfigError : another device, one that is not there, or one without that precision or priority.
    """
    if device == "auto":
        gpu = Profile("cuda", precision, priority)
        wanted = gpu in all_profiles() and (bundle is None or gpu.name in bundle.calibrations)
        if wanted and cuda_devices():
            return gpu
        device, precision = "cpu", "float32" if precision == "tf32" else precision
    profile = Profile(device, precision, priority)
    _check(profile)
    return profile


def _check(profile: Profile) -> None:
    kind, (_, colon, number) = profile.kind, profile.device.partition(":")
    if kind not in PRECISIONS or (colon and not (kind == "cuda" and number.isdecimal())):
        raise ConfigError("run.device", profile.device, "choose 'auto', 'cpu', 'cuda' or 'cuda:<number>'")
    if profile.precision not in PRECISIONS[kind]:
        can = ", ".join(PRECISIONS[kind])
        raise ConfigError("run.precision", profile.precision, f"on {kind} choose from {can}")
    if profile.priority == "latency" and profile._replace(device=kind) not in all_profiles():
        raise ConfigError(
            "run.priority", profile.priority, "is for the CPU in float32: set run.device and run.precision to these"
        )
    if kind == "cuda" and int(number or 0) >= (there := cuda_devices()):
        raise ConfigError("run.device", profile.device, f"there are {there} CUDA devices: choose 'auto'")
