"""`midwatch version`: what a figure or a bug report depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_DISTRIBUTIONS = (
    "midwatch",
    "torch",
    "numpy",
    "numba",
    "onnxruntime",
    "pyarrow",
    "duckdb",
    "kafka-python",
    "confluent-kafka",
)


def versions() -> dict[str, str]:
    """Return the versions of this program, its Python and its main dependencies, without importing them."""
    found = {"midwatch": _version("midwatch"), "python": platform.python_version(), "machine": platform.machine()}
    return found | {name: _version(name) for name in _DISTRIBUTIONS}


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
