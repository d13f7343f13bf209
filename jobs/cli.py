"""The `midwatch` command: what can be asked for. Each verb lives in a module of its own, imported when it is used."""

from __future__ import annotations

import gc
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import exits
from jobs.call import Call, command, time_option
from pipeline.errors import PipelineError

_CODES = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in exits.MEANINGS.items())
_HELP = f"""Keep the watch over fleets of sensors: streams in, alerts out, retrained every night.

\b
Data goes to standard output, everything else to standard error.
Exit codes:
{_CODES}
"""
# When garbage is looked for: the imports make a million objects that stay, and by default are looked through each time.
_COLLECTED = (50_000, 20, 50)
_PLAIN: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False, "no_args_is_help": True}

app = typer.Typer(help=_HELP, **_PLAIN)
models = typer.Typer(help="The models, and which one serves.", **_PLAIN)
alerts = typer.Typer(help="The alerts, and what you say about them.", **_PLAIN)
topics = typer.Typer(help="The Kafka topics that the configuration names.", **_PLAIN)
config = typer.Typer(help="The configuration: check, show, describe it.", **_PLAIN)
app.add_typer(models, name="models")
app.add_typer(alerts, name="alerts")
app.add_typer(topics, name="topics")
app.add_typer(config, name="config")


class SourceKind(StrEnum):
    """Where a new configuration reads from."""

    FILE = "file"
    KAFKA = "kafka"


class ClientName(StrEnum):
    """The Kafka client libraries."""

    PYTHON = "kafka-python"
    CONFLUENT = "confluent"


_Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or auto; over run.device.")]
_Bundle = Annotated[str | None, typer.Option("--model", metavar="ID", help="Instead of the champion.")]
_ExitCode = Annotated[bool, typer.Option("--exit-code", help=f"Exit with {exits.ALERTS_FOUND} if there are any.")]
_AlertId = Annotated[str, typer.Argument(metavar="ALERT", help="The alert's id.")]
_By = Annotated[str | None, typer.Option(help="Who says so; else the user of this machine.")]
_Note = Annotated[str, typer.Option(help="Why.")]


@command(app, configured=False)
def demo(
    call: Call,
    folder: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("var/demo"),
    seed: Annotated[int, typer.Option(help="Of the made-up sensors.")] = 7,
    device: _Device = None,
) -> None:
    """Train on made-up pumps, break some, watch the alerts."""
    from jobs.demo import demo as run_demo

    run_demo(folder=folder, seed=seed, device=device or "auto", console=call.console)


@command(app, configured=False)
def init(
    call: Call,
    sample: Annotated[Path | None, typer.Argument(exists=True, help="A file of your readings.")] = None,
    source: Annotated[SourceKind, typer.Option(help="Where readings will come from.")] = SourceKind.FILE,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("midwatch.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite it.")] = False,
) -> None:
    """Write a configuration file, with the channels of SAMPLE."""
    from jobs.init import init as write_config

    write_config(sample=sample, source=source.value, out=out, force=force, console=call.console)


@command(app)
def run(
    call: Call,
    device: _Device = None,
    slot: Annotated[int | None, typer.Option(help="This worker's number; over kafka.slot.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="So many, from that slot on; restarted as they end.")
    ] = None,
) -> None:
    """Watch a feed until it ends or SIGTERM comes."""
    settings = call.settings({"run.device": device, "kafka.slot": slot})
    if workers is None:
        from jobs.run import run as watch

        watch(settings=settings, console=call.console)
        return
    from jobs.supervise import run_workers

    first = settings.kafka.slot
    of_slot = lambda number: call.settings({"run.device": device, "kafka.slot": number})  # noqa: E731
    run_workers(settings=of_slot, first=first, workers=workers, console=call.console)


@command(app)
def historian(
    call: Call,
    once: Annotated[bool, typer.Option("--once", help="End when all that is there is written.")] = False,
) -> None:
    """Write the history of a Kafka feed from what is committed, beside `run`."""
    from jobs.historian import historian as write_history

    write_history(settings=call.settings(), once=once, console=call.console)


@command(app)
def notify(call: Call) -> None:
    """Hand committed alerts of a Kafka feed to the sinks, at least once."""
    from jobs.notify import notify as hand_on

    hand_on(settings=call.settings(), console=call.console)


@command(app)
def score(
    call: Call,
    path: Annotated[Path, typer.Argument(exists=True, metavar="FILE", help="CSV, NDJSON or Parquet.")],
    out: Annotated[Path | None, typer.Option(help="Also write every row's score, as Parquet or CSV.")] = None,
    bundle: _Bundle = None,
    device: _Device = None,
    exit_code: _ExitCode = False,
) -> None:
    """Score a file and print its alerts. Nothing is kept."""
    from jobs.score import score as score_file

    settings = call.settings({"run.device": device})
    found = score_file(settings=settings, path=path, out=out, bundle=bundle, console=call.console)
    _exit_if_found(found, exit_code)


@command(app)
def replay(
    call: Call,
    path: Annotated[Path, typer.Argument(exists=True, metavar="FILE", help="A file of readings, or a folder of them.")],
    speed: Annotated[float | None, typer.Option(help="Times real time; without it as fast as it goes.")] = None,
    device: _Device = None,
    exit_code: _ExitCode = False,
) -> None:
    """Watch files as if their readings came now, with history and state."""
    from jobs.replay import replay as replay_files

    settings = call.settings({"run.device": device})
    _exit_if_found(replay_files(settings=settings, path=path, speed=speed, console=call.console), exit_code)


@command(app)
def train(
    call: Call,
    files: Annotated[list[Path] | None, typer.Argument(exists=True, help="Instead of the history.")] = None,
    promote: Annotated[bool, typer.Option(help="Make it the champion if its gate lets it.")] = True,
    device: _Device = None,
) -> None:
    """Fit a model, calibrate it, put it through its gate."""
    from jobs.train import train as train_model

    settings = call.settings({"run.device": device})
    train_model(settings=settings, files=tuple(files or ()), promote=promote, console=call.console)


@command(app)
def nightly(
    call: Call,
    recalibrate_only: Annotated[bool, typer.Option("--recalibrate-only", help="New thresholds, no training.")] = False,
    as_of_ns: Annotated[int | None, time_option("--as-of")] = None,
    device: _Device = None,
) -> None:
    """Retrain on the confirmed-normal history, gate, promote. Made for cron; running it again is harmless."""
    from jobs.nightly import nightly as run_nightly

    settings = call.settings({"run.device": device})
    run_nightly(settings=settings, recalibrate_only=recalibrate_only, as_of_ns=as_of_ns, console=call.console)


@command(app)
def evaluate(
    call: Call,
    labels: Annotated[Path, typer.Argument(exists=True, metavar="FILE", help="CSV, NDJSON or Parquet.")],
    column: Annotated[str, typer.Option(help="1 where a row is anomalous, else 0.")] = "label",
) -> None:
    """Hold the history's scores against labels."""
    from jobs.evaluate import evaluate as hold_against

    hold_against(settings=call.settings(), labels_file=labels, label_column=column, console=call.console)


@command(app)
def doctor(call: Call) -> None:
    """Look at all that must be there; say how to mend it."""
    from jobs.doctor import doctor as examine

    if not examine(settings=call.settings(), console=call.console):
        raise typer.Exit(exits.FAILED)


@command(app, configured=False)
def bench(
    call: Call,
    names: Annotated[list[str] | None, typer.Argument(help="What to measure; everything without it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the figures there, as JSON.")] = None,
    table: Annotated[Path | None, typer.Option(help="Also write them there as a table, in Markdown.")] = None,
    peers: Annotated[Path | None, typer.Option(metavar="DIR", help="Other libraries too; DIR gets them.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only see that it runs; the figures mean nothing.")] = False,
    device: _Device = None,
) -> None:
    """Measure how fast it is here, as ratios to yardsticks measured beside."""
    from jobs.bench import bench as measure
    from jobs.benches.measure import Trial

    trial = Trial(quick=quick, device=device or "auto")
    measure(names or (), trial, call.console, out=out, table=table, peers=peers)


@command(app)
def chaos(
    call: Call,
    kills: Annotated[int, typer.Option(min=1, help="How many processes are killed, at least.")] = 30,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long that goes on, about.")] = 2.0,
    bootstrap: Annotated[str | None, typer.Option(help="Your brokers, host:port; without it three of its own.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="How many workers watch.")] = 3,
    rate: Annotated[float, typer.Option(min=1, help="Messages a second.")] = 400.0,
    seed: Annotated[int, typer.Option(help="Of the input and of the faults.")] = 0,
    client: Annotated[ClientName, typer.Option(help="Which client library the workers use.")] = ClientName.CONFLUENT,
    fixed: Annotated[bool, typer.Option("--fixed", help="Partitions by slot number, not by the group.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Keep what the workers said there.")] = None,
    takeovers: Annotated[
        int, typer.Option(min=0, help="Measure this instead: how long each kind of takeover takes, so many times.")
    ] = 0,
) -> None:
    """Kill workers and brokers under a feed; say whether an alert was lost or doubled.

    With --bootstrap it makes topics of its own on your brokers, strikes nothing but its own workers, and takes how to
    connect from [kafka] of the configuration.
    """
    from jobs.chaos import ChaosPlan
    from jobs.chaos import chaos as strike

    settings = call.settings({"kafka.bootstrap": bootstrap}) if bootstrap else None
    plan = ChaosPlan(kills, minutes, workers, rate, seed, client.value, "fixed" if fixed else "group")
    if takeovers:
        from jobs.chaos_takeover import measure_takeovers

        measure_takeovers(takeovers, plan, keep, call.console)
        return
    if not strike(plan=plan, settings=settings, keep=keep, console=call.console):
        raise typer.Exit(exits.FAILED)


@command(app, configured=False)
def version(call: Call) -> None:
    """Print the versions that figures depend on."""
    from jobs.version import versions

    call.console.record(versions())


@command(models, "list")
def models_list(call: Call) -> None:
    """List the models, the newest first, with the champion marked."""
    from jobs.promote import list_bundles

    list_bundles(settings=call.settings(), console=call.console)


@command(models, "show")
def models_show(call: Call, bundle: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Show what a model was made from and how it did."""
    from jobs.promote import show_bundle

    show_bundle(settings=call.settings(), bundle=bundle, console=call.console)


@command(models, "promote")
def models_promote(call: Call, bundle: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Make a model the champion; workers follow at once."""
    from jobs.promote import promote_bundle

    promote_bundle(settings=call.settings(), bundle=bundle, console=call.console)


@command(models, "rollback")
def models_rollback(call: Call) -> None:
    """Make the champion before this one it again."""
    from jobs.promote import rollback

    rollback(settings=call.settings(), console=call.console)


@command(models, "export")
def models_export(
    call: Call,
    bundle: Annotated[str, typer.Argument(metavar="ID")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist, or be empty.")],
    files: Annotated[list[Path] | None, typer.Argument(exists=True, help="Try it on these, not on history.")] = None,
) -> None:
    """Write a model as torch.export programs, for use without midwatch."""
    from jobs.export import export_bundle

    export_bundle(settings=call.settings(), bundle=bundle, out=out, files=tuple(files or ()), console=call.console)


@command(alerts, "list")
def alerts_list(
    call: Call,
    since_ns: Annotated[int | None, time_option("--since")] = None,
    asset: Annotated[str | None, typer.Option(help="Of this asset only.")] = None,
    state: Annotated[str | None, typer.Option(help="open or resolved.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    exit_code: _ExitCode = False,
) -> None:
    """List alerts, the newest first."""
    from jobs.alerts import list_alerts

    found = list_alerts(
        settings=call.settings(), since_ns=since_ns, asset=asset, state=state, limit=limit, console=call.console
    )
    _exit_if_found(found, exit_code)


@command(alerts, "tail")
def alerts_tail(call: Call) -> None:
    """Print alerts as they come, until Ctrl-C."""
    from jobs.alerts import tail_alerts

    tail_alerts(settings=call.settings(), console=call.console)


@command(alerts, "confirm")
def alerts_confirm(call: Call, alert: _AlertId, note: _Note = "", by: _By = None) -> None:
    """Say that an alert was right.

    Its rows are never trained on, and every candidate must find it.
    """
    from jobs.alerts import label_alert

    label_alert(settings=call.settings(), alert=alert, verdict="confirm", note=note, by=by, console=call.console)


@command(alerts, "dismiss")
def alerts_dismiss(call: Call, alert: _AlertId, note: _Note = "", by: _By = None) -> None:
    """Say that an alert was wrong.

    Its rows are normal, and the next threshold counts it as a false alarm.
    """
    from jobs.alerts import label_alert

    label_alert(settings=call.settings(), alert=alert, verdict="dismiss", note=note, by=by, console=call.console)


@command(topics, "create")
def topics_create(
    call: Call,
    partitions: Annotated[
        int | None, typer.Option(min=1, help="Of readings and alerts; else 4, or kafka.slots.")
    ] = None,
    replication: Annotated[int | None, typer.Option(min=1, help="Copies of each; else as the broker has it.")] = None,
) -> None:
    """Create those that are missing, then check all; running it again is harmless."""
    from jobs.topics import create

    create(settings=call.settings(), partitions=partitions, replication=replication, console=call.console)


@command(topics, "check")
def topics_check(call: Call) -> None:
    """Check that all are there and fit for what they are used for."""
    from jobs.topics import check

    check(settings=call.settings(), console=call.console)


@command(config, "check")
def config_check(call: Call) -> None:
    """Check all that can be checked without connecting."""
    from jobs.config.show import check

    check(call.load(), call.console)


@command(config, "show")
def config_show(call: Call) -> None:
    """Print every option, its value and where it came from."""
    from jobs.config.show import show

    show(call.load(), call.console)


@command(config, "schema", configured=False)
def config_schema(call: Call) -> None:
    """Print the JSON Schema of the file, for editors."""
    from jobs.config.show import schema

    schema(call.console)


def _exit_if_found(found: int, asked: bool) -> None:
    if asked and found:
        raise typer.Exit(exits.ALERTS_FOUND)


def main() -> None:
    """Run the command line; errors made for people end with one line and the exit code of their kind."""
    gc.set_threshold(*_COLLECTED)
    try:
        app(prog_name="midwatch")
    except PipelineError as error:
        sys.stderr.write(f"midwatch: {error}\n")
        for note in getattr(error, "__notes__", ()):
            sys.stderr.write(f"midwatch: {note}\n")
        sys.exit(exits.exit_code(error))


if __name__ == "__main__":
    main()
