"""The watch over a real broker, as a process of its own: the alert topic holds what `score` says of the file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pump_fleet as pumps
import pytest
from kafka_fixture import LIBRARIES

from connectors.history_views import open_history
from jobs.console import Console
from jobs.simulate import CHANNELS, asset_name
from jobs.train import train

pytestmark = pytest.mark.kafka
LIVE = 500
MIDWATCH = [sys.executable, "-c", "import sys; sys.argv[0] = 'midwatch'; from jobs.cli import main; main()"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kafka_watch")
    settings = pumps.settings(folder, **{"train.members": ["pca"]})
    path = pumps.write_parquet(folder / "normal.parquet")
    train(settings=settings, files=(path,), promote=True, console=Console(as_json=True, quiet=True))
    made = pumps.fleet(pumps.ROWS + LIVE)
    x = made.x[:, pumps.ROWS :].copy()
    x[0, 200:320, 10:12] += 6
    x[1, 250:400, 4] = x[1, 250, 4]
    lines = []
    for i in range(LIVE):
        for p in range(pumps.PUMPS):
            values = {c: round(float(v), 4) for c, v in zip(CHANNELS, x[p, i], strict=True)}
            body = {"asset": asset_name(p), "ts": int(made.ts_ns[pumps.ROWS + i]), **values}
            lines.append((asset_name(p), json.dumps(body)))
    (folder / "live.ndjson").write_text("".join(body + "\n" for _, body in lines))
    return folder, lines


def configure(folder: Path, feed, bootstrap: str, library: str, models: Path) -> Path:
    path = folder / "midwatch.toml"
    names = ", ".join(json.dumps(c) for c in CHANNELS)
    path.write_text(f"""
[feed]
name = "pumps"
period_s = {pumps.PERIOD_S}
channels = [{names}]
[mapping]
time_unit = "ns"
max_ahead_s = "off"
[smoother]
memory = 32
span_s = 43200
[source]
type = "kafka"
[kafka]
bootstrap = ["{bootstrap}"]
client = "{library}"
topic = "{feed.input}"
group = "{feed.group}"
alerts_topic = "{feed.alerts}"
dead_topic = "{feed.dead}"
state_topic = "{feed.state}"
scores_topic = "{feed.scores}"
[registry]
root = "{models}"
""")
    return path


def produce(bootstrap: str, topic: str, lines) -> None:
    """With kcat, a client that is not ours; where it is not installed, with confluent's own producer."""
    if shutil.which("kcat"):
        body = "".join(f"{key}\t{value}\n" for key, value in lines)
        command = ["kcat", "-b", bootstrap, "-P", "-t", topic, "-K", "\t"]
        subprocess.run(command, input=body, text=True, check=True, timeout=60)
        return
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": bootstrap})
    for key, value in lines:
        producer.produce(topic, value, key)
        producer.poll(0)
    assert producer.flush(60) == 0


def consume(bootstrap: str, topic: str, expected: int) -> list[dict]:
    from confluent_kafka import Consumer

    settings = {"group.id": "reader", "isolation.level": "read_committed", "auto.offset.reset": "earliest"}
    consumer = Consumer({"bootstrap.servers": bootstrap, **settings})
    consumer.subscribe([topic])
    found, until = [], time.monotonic() + 60
    while len(found) < expected and time.monotonic() < until:
        found += [json.loads(m.value()) for m in consumer.consume(100, 0.5) if not m.error()]
    found += [json.loads(m.value()) for m in consumer.consume(100, 1.0) if not m.error()]  # more than expected?
    consumer.close()
    return found


def watch_until(folder: Path, config: Path, rows: int) -> subprocess.CompletedProcess[str]:
    """Run the watch until it has said that it did `rows` rows, then ask it to end."""
    log = folder / "run.log"
    with log.open("w") as errors:
        environ = os.environ | {"NO_COLOR": "1"}
        process = subprocess.Popen([*MIDWATCH, "run", "-c", str(config)], cwd=folder, stderr=errors, env=environ)
        until = time.monotonic() + 120
        while time.monotonic() < until and process.poll() is None and f"{rows} rows," not in log.read_text():
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
    return subprocess.CompletedProcess(process.args, code, "", log.read_text())


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_alert_topic_holds_what_scoring_the_same_rows_from_a_file_says(broker, feed, trained, tmp_path, library):
    folder, lines = trained
    produce(broker.bootstrap, feed.input, [*lines[:700], ("pump-01", "no json"), *lines[700:]])
    config = configure(tmp_path, feed, broker.bootstrap, library, folder / "models")
    ended = watch_until(tmp_path, config, len(lines))
    assert ended.returncode == 0, ended.stderr
    command = [*MIDWATCH, "score", str(folder / "live.ndjson"), "--json", "-q", "-c", str(config)]
    scored = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    of_file = {(a["id"], a["seq"]): a for a in map(json.loads, scored.stdout.splitlines())}
    told = consume(broker.bootstrap, feed.alerts, len(of_file))
    of_topic = {(a["id"], a["seq"]): a for a in told}
    assert len(told) == len(of_topic), "an alert was published twice"
    assert of_topic.keys() == of_file.keys()
    assert {("pump-01", "anomaly"), ("pump-02", "stuck")} <= {(a["asset"], a["kind"]) for a in told}
    for key, alert in of_topic.items():
        assert alert["state"] == of_file[key]["state"]
        assert alert["ratio"] == pytest.approx(of_file[key]["ratio"], rel=1e-5)
    ended = subprocess.run([*MIDWATCH, "historian", "--once", "-c", str(config)], cwd=tmp_path, timeout=120)
    assert ended.returncode == 0
    with open_history(tmp_path / "var" / "history") as history:
        assert history.execute("SELECT count(*) FROM rows").fetchone() == (len(lines),)
        found = history.execute("SELECT asset, ts_ns, ratio FROM scores WHERE breached").fetchall()
        assert {(a["asset"], a["ts_ns"]) for a in told if a["kind"] == "anomaly" and a["state"] == "open"} <= {
            (asset, ts_ns) for asset, ts_ns, _ in found
        }
        assert set(history.execute("SELECT id, seq FROM alerts").fetchall()) == of_topic.keys()
