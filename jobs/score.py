"""`midwatch score FILE`: the same fold over a file, its alerts printed, nothing kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from connectors.sinks import TextSink
from jobs import build
from pipeline.errors import ConfigError
from pipeline.protocols import Batch, Restored, Sink
from pipeline.runner import Runner, Step
from pipeline.values import Verdicts

if TYPE_CHECKING:
    from jobs.console import Console
    from jobs.settings import Settings

_TOP = 3
_MESSAGES = 8192  # of one turn; a message of a Parquet or CSV file is a batch of rows


class PassingCommitter:
    """`Committer` that hands alerts and dead letters on and keeps nothing: a file is scored from its beginning."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def restore(self, topic: str, partition: int) -> Restored | None:
        """Return that nothing was ever committed."""
        return None

    def rotation(self, topic: str, partition: int) -> tuple[int, int]:
        """Return that everything is saved at once."""
        return (1, 0)

    def commit(self, batch: Batch) -> None:
        """Hand on what there is to tell."""
        self._sink.write(batch.alerts, batch.dead)

    def close(self) -> None:
        """Close the sink."""
        self._sink.close()


def score(settings: Settings, path: Path, out: Path | None, bundle: str | None, console: Console) -> int:
    """Print the alerts of a file; return how many opened. `out` gets a row for every frame."""
    served = build.require_champion(settings, bundle)
    source, mapping = build.file_source(settings, path)
    chain = build.chain_of(settings, mapping)
    chain.serve(served, build.engine_of(served, settings))
    writer = None if out is None else _FrameWriter(out, mapping.channels)
    rows = opened = dead = 0

    with console.progress(f"scoring {path.name}") as advance:

        def observe(step: Step) -> None:
            nonlocal rows, opened, dead
            rows += step.output.counts["rows"]
            dead += step.output.counts["dead"]
            opened += sum(a.state == "open" for a in step.output.alerts)
            advance(step.output.counts["rows"])
            if writer is not None:
                for verdicts in step.output.verdicts:
                    names = chain.assets(step.polled[0].topic, verdicts.scores.partition)
                    writer.write(names, verdicts)

        sink = TextSink(sys.stdout, sys.stderr, as_json=console.as_json)
        committer = PassingCommitter(sink)
        Runner(
            chain, source, committer, keep_state=False, max_rows=_MESSAGES, commit_interval_s=1.0, observe=observe
        ).run(lambda: False)
        committer.close()
        source.close()
        if writer is not None:
            writer.close()
    console.say(f"{rows} rows, {opened} alerts, {dead} dead letters, model {served.id}")
    return opened


class _FrameWriter:
    """Writes every frame's figures to Parquet or CSV, by the suffix of the name."""

    def __init__(self, path: Path, channels: Sequence[str]) -> None:
        if path.suffix not in (".parquet", ".csv"):
            raise ConfigError("--out", str(path), "end it in .parquet or .csv")
        self._channels = channels
        self._schema = pa.schema(
            [("asset", pa.string()), ("ts", pa.timestamp("ns", "UTC"))]
            + [(n, pa.float32()) for n in ("score", "smoothed", "score_ratio", "own_ratio", "threshold", "coverage")]
            + [("status", pa.uint8()), ("top_channels", pa.string())]
        )
        self._writer = (pq.ParquetWriter if path.suffix == ".parquet" else pyarrow.csv.CSVWriter)(path, self._schema)

    def write(self, names: Sequence[str], verdicts: Verdicts) -> None:
        """Add frames; a missing score is null."""
        s = verdicts.scores
        figures = (s.score, verdicts.smoothed, verdicts.ratio, verdicts.own_ratio, verdicts.threshold, s.coverage)
        assets = pa.array(names).take(pa.array(s.asset))
        columns = [assets, pa.array(s.ts_ns).cast(pa.timestamp("ns", "UTC"))]
        columns += [pa.array(f, from_pandas=True) for f in figures]
        columns += [pa.array(s.status), pa.array(self._tops(s.by_channel))]
        self._writer.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()

    def _tops(self, share: np.ndarray) -> Iterator[str]:
        order = np.argsort(-share, axis=1, kind="stable")[:, :_TOP]
        parts = np.take_along_axis(share, order, axis=1)
        for where, part in zip(order.tolist(), parts.tolist(), strict=True):
            yield " ".join(f"{self._channels[c]}={p:.3f}" for c, p in zip(where, part, strict=True) if p > 0)
