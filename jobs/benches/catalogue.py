"""Every bench by name: where its function is, and what its ratio must and should reach.

`must` is the least with which the work is called done, `goal` what the best known way reaches; they are printed beside
the figures and never asserted: a busy machine is no broken program. A function is imported when its bench is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from jobs.benches.measure import Result, Trial


@dataclass(frozen=True, slots=True)
class Bench:
    """One bench: `function` is `module:name` within `jobs.benches`; None where nothing was set beforehand."""

    function: str
    must: float | None = None
    goal: float | None = None

    def run(self, trial: Trial) -> Result:
        """Measure it.

        Raises
        ------
        Unavailable : what it needs (a device, a package) is not on this machine.
        """
        module, _, name = self.function.partition(":")
        function: Callable[[Trial], Result] = getattr(import_module(f"jobs.benches.{module}"), name)
        return function(trial)

    def stands(self, result: Result) -> str:
        """Return where a ratio stands: `goal`, `must` or `below`; empty where nothing was set."""
        if self.must is None or self.goal is None:
            return ""
        sign = 1 if result.better == "higher" else -1
        reached = [
            name for name, level in (("goal", self.goal), ("must", self.must)) if sign * result.ratio >= sign * level
        ]
        return (reached or ["below"])[0]


BENCHES: Mapping[str, Bench] = {
    "decode.json": Bench("decoding:json", 0.9, 1.2),
    "decode.binary": Bench("decoding:binary", 0.2, 0.5),
    "ring.scatter": Bench("rings:scatter", 0.8, 3.0),
    "ring.window": Bench("rings:window", 0.45, 0.7),
    "score.dense.fp32": Bench("scoring:dense", 0.8, 1.0),
    "score.conv.fp32": Bench("scoring:conv", 0.6, 0.75),
    "score.dense.b1": Bench("precision:dense_single", 1.3, 1.0),
    "score.dense.int8": Bench("precision:dense_int8", 2.2, 2.7),
    "score.conv.bf16": Bench("precision:conv_bfloat16", 0.85, 1.05),
    "group.conv": Bench("scoring:group_conv", 2.5, 4.0),
    "train.compile": Bench("training:compiled"),
    "stream.conv": Bench("streaming:conv", 5.0, 10.0),
    "e2e.stream": Bench("streaming:json", 0.6, 0.8),
    "smooth.medmad": Bench("smoothing:medmad", 10.0, 20.0),
    "e2e.json.dense": Bench("e2e:json_dense", 0.7, 0.85),
    "e2e.json.conv": Bench("e2e:json_conv"),
    "e2e.json.int8": Bench("e2e:json_int8"),
    "e2e.latency": Bench("precision:latency"),
    "e2e.default": Bench("e2e:default"),
    "e2e.overhead": Bench("e2e:overhead", 0.2, 0.1),
    "kafka.transaction": Bench("transaction:price"),
    "kafka.paused": Bench("paused:held", 1.1, 1.0),
    "scale.shards": Bench("shards:two", 1.6, 1.85),
    "cold.start": Bench("starting:cold", 1.6, 0.4),
    "memory.assets": Bench("memory:assets"),
    "gpu.score.dense": Bench("gpu:score_dense", 0.35, 0.60),
    "gpu.score.conv": Bench("gpu:score_conv", 0.06, 0.25),
    "gpu.e2e.rows": Bench("gpu:rows", 0.30, 0.50),
    "gpu.rings.vs.windows": Bench("gpu:rings", 10.0, 25.0),
    "gpu.latency": Bench("gpu:latency", 100.0, 60.0),
}
