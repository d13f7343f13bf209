"""What a transaction costs: the watch over a real broker, with its commits as they are and as plain records.

Each contestant is a process of its own that runs the loop of `midwatch run` on the same topic, under a group and with
topics of its own, 4,096 messages to a commit; they take turns. What commits without transactions sends the very same
records and waits for them in the same way, but nothing makes them visible together, and no offset is kept.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, Self

import numpy as np
import torch

from connectors.cluster import Cluster
from connectors.kafka_client import Client, Producer, connect
from connectors.kafka_commit import KafkaCommitter
from connectors.kafka_settings import KafkaSettings
from connectors.kafka_source import KafkaSource
from connectors.kafka_topics import create_topics
from connectors.scores_topic import ScoresTopic
from jobs.benches import fleet
from jobs.benches.measure import Result, Trial, against, result
from models.engine import open_engine
from pipeline.chain import Chain
from pipeline.runner import Runner, Step

_ASSETS: Final = 200
_COMMIT: Final = 4096  # messages
_TURN: Final = 4 * _COMMIT
_INPUT: Final = "readings"


@dataclass(frozen=True, slots=True)
class Contestant:
    """How one of them reads and commits."""

    library: str
    transactions: bool
    scores: bool = False

    @property
    def name(self) -> str:
        """Return what it is called, in topics too."""
        extra = ("" if self.transactions else ".plain") + (".scores" if self.scores else "")
        return f"{self.library}{extra}"

    def topics(self) -> dict[str, Any]:
        """Return where it writes."""
        return {
            "alerts_topic": f"{self.name}.alerts",
            "dead_topic": f"{self.name}.dead",
            "state_topics": {_INPUT: f"{self.name}.state"},
        }


_CONFLUENT = (Contestant("confluent", True), Contestant("confluent", False))
_ALL = (
    *_CONFLUENT,
    Contestant("confluent", True, scores=True),
    Contestant("kafka-python", True),
    Contestant("kafka-python", False),
)


class _PlainProducer:
    """A producer whose transactions are none."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self.commit = producer.flush
        self.init_transactions = self.begin = self.abort = self.send_offsets = self._nothing

    def _nothing(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


class _PlainClient:
    """A client whose producers have no transactions."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def producer(self, transactional_id: str = "", **options: Any) -> _PlainProducer:
        return _PlainProducer(self._client.producer(**options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def price(trial: Trial) -> Result:
    """Rows a second with transactions to those without, with confluent-kafka; kafka-python, scores under `more`."""
    contestants = _CONFLUENT if trial.quick else _ALL
    turn = trial.size(_TURN, 512)
    with Cluster() as cluster, ExitStack() as started:
        _fill(cluster.bootstrap, contestants, (trial.count + 1) * (turn + _COMMIT))  # turns end with a commit
        ends = [started.enter_context(_Worker(cluster.bootstrap, one, turn)).end for one in contestants]
        taken = np.array([[_one_turn(end) for end in ends] for _ in range(trial.count + 1)])[1:]
    wall = {one.name: taken[:, i, 0] for i, one in enumerate(contestants)}
    cpu = {one.name: taken[:, i, 1] for i, one in enumerate(contestants)}
    lines = [against("the same records without transactions", wall["confluent.plain"] / wall["confluent"])]
    if not trial.quick:
        lines += [
            against("kafka-python: the same without transactions", wall["kafka-python.plain"] / wall["kafka-python"]),
            against("with a scores topic: the same without it", wall["confluent"] / wall["confluent.scores"]),
            against("kafka-python, in rows per CPU-second", cpu["kafka-python"] / cpu["confluent"]),
        ]
    figures = {f"{name}_rows_per_s": turn / float(np.median(seconds)) for name, seconds in wall.items()}
    figures |= {f"{name}_rows_per_cpu_s": turn / float(np.median(seconds)) for name, seconds in cpu.items()}
    return result("kafka.transaction", lines, figures)


class _Worker:
    """The process of a contestant, and the end of the pipe to it."""

    def __init__(self, bootstrap: str, contestant: Contestant, turn: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.end, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, bootstrap, contestant, turn), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()
        self.end.close()


def work(end: Connection, bootstrap: str, contestant: Contestant, turn: int) -> None:
    """Run the watch; after so many rows say what they took, (wall, CPU) seconds, and wait to be asked for more."""
    torch.set_num_threads(1)
    bundle = fleet.bundle(fleet.DEFAULT)
    chain = Chain(fleet.chain_spec())
    chain.serve(bundle, open_engine(bundle, "cpu"))
    client: Any = connect(KafkaSettings(bootstrap), contestant.library)
    source = KafkaSource(client, [_INPUT], contestant.name)
    scores = ScoresTopic(f"{contestant.name}.scores", "bench", fleet.CHANNEL_NAMES) if contestant.scores else None
    if not contestant.transactions:
        client = _PlainClient(client)
    committer = KafkaCommitter(client, group=contestant.name, slot=0, **contestant.topics(), scores=scores)
    turns = _Turns(end, turn)
    runner = Runner(chain, source, committer, max_rows=_COMMIT, publish_scores=contestant.scores, observe=turns.after)
    runner.run(lambda: False)


class _Turns:
    """Counts rows, and stops the loop between two turns."""

    def __init__(self, end: Connection, turn: int) -> None:
        self._end, self._turn = end, turn
        self._cpu = time.process_time()
        self._begin()

    def after(self, step: Step) -> None:
        self._rows += sum(map(len, step.polled))
        if self._rows < self._turn:
            return
        wall, cpu = time.perf_counter() - self._wall, time.process_time()
        self._end.send((wall * self._turn / self._rows, (cpu - self._cpu) * self._turn / self._rows))
        self._cpu = cpu  # what a client fetches between its turns is work of its own
        self._begin()

    def _begin(self) -> None:
        self._end.recv()
        self._rows, self._wall = 0, time.perf_counter()


def _one_turn(end: Connection) -> tuple[float, float]:
    end.send("go")
    taken: tuple[float, float] = end.recv()
    return taken


def _fill(bootstrap: str, contestants: Sequence[Contestant], count: int) -> None:
    """Create all topics, and put messages into the input."""
    client = connect(KafkaSettings(bootstrap), "confluent")
    for one in contestants:
        scores = f"{one.name}.scores" if one.scores else ""
        create_topics(client, **one.topics(), scores_topic=scores, partitions=1)
    producer = client.producer()
    for polled in fleet.batches(1 + count // fleet.BATCH, fleet.BATCH, _ASSETS):
        for value in polled.value:
            producer.send(_INPUT, value, partition=0)
    producer.flush()
    producer.close()
