import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import cli, exits
from pipeline.errors import (
    BrokerUnavailable,
    BundleError,
    ConfigError,
    GateRefused,
    InputError,
    LeakageError,
    PipelineError,
    SchemaError,
    SinkUnavailable,
    StateError,
    TooLittleHistory,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


@pytest.fixture
def midwatch(monkeypatch, capsys):
    """Run the command line in this process; return its exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["midwatch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def verb(monkeypatch):
    """Put a function in the place of a command's module; return the arguments of its calls."""

    def replace(module, function, result=None):
        calls = []

        def called(**given):
            calls.append(given)
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setitem(sys.modules, f"jobs.{module}", SimpleNamespace(**{function: called}))
        return calls

    return replace


def test_help_lists_every_exit_code(midwatch):
    code, out, _ = midwatch("--help")
    assert code == 0
    for number, meaning in exits.MEANINGS.items():
        assert f"{number:>3}  {meaning}" in out


def test_every_command_has_help_and_needs_no_module_for_it(midwatch):
    def commands(group):
        for command in group.registered_commands:
            yield (command.name,)
        for inner in group.registered_groups:
            for rest in commands(inner.typer_instance):
                yield (inner.name, *rest)

    found = sorted(commands(cli.app))
    assert len(found) >= 21
    for command in found:
        code, out, _ = midwatch(*command, "--help")
        assert code == 0, command
        assert "--json" in out, command


HEAVY = {"torch", "pandas", "scipy", "river", "duckdb", "kafka", "confluent_kafka", "numba", "pyarrow", "numpy"}
HEAVY |= {"pydantic", "structlog", "rich"}


@pytest.mark.parametrize("arguments", [(), ("--help",), ("run", "--help"), ("bench", "--help"), ("version",)])
def test_the_command_line_starts_without_anything_heavy(arguments):
    run = f"sys.argv = ['midwatch', *{arguments!r}]; jobs.cli.main()" if arguments else "pass"
    heavy = HEAVY if arguments in ((), ("--help",)) else HEAVY - {"pydantic"}  # typer's own, once a command is read
    code = f"import atexit, sys, jobs.cli; heavy = {heavy!r}\n"
    code += f"atexit.register(lambda: print(sorted(heavy & set(sys.modules))))\n{run}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PipelineError("x"), 1),
        (ConfigError("a.b", 1, "mend it"), 2),
        (InputError("x"), 1),
        (SchemaError("x"), 1),
        (TooLittleHistory(1, 2, "rows"), 1),
        (LeakageError("x"), 1),
        (BundleError("x"), 1),
        (StateError("x"), 1),
        (GateRefused(("worse", "slower")), 4),
        (BrokerUnavailable("x"), 75),
        (SinkUnavailable("x"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_ends_with_the_exit_code_of_its_kind_and_one_line(midwatch, verb, error, code):
    verb("doctor", "doctor", error)
    ended, out, err = midwatch("doctor")
    assert ended == code
    assert out == ""
    expected = "" if isinstance(error, KeyboardInterrupt) else f"midwatch: {error}\n"
    assert err == expected


def test_a_defect_shows_where_it_is(monkeypatch, verb):
    verb("doctor", "doctor", ZeroDivisionError("a defect"))
    monkeypatch.setattr(sys, "argv", ["midwatch", "doctor"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_wrong_usage_is_told_on_standard_error(midwatch):
    for arguments in (["--wrong"], ["rnu"], ["score"], ["score", "gone.csv"], ["nightly", "--as-of", "soon"]):
        code, out, err = midwatch(*arguments)
        assert (code, out) == (2, ""), arguments
        assert "Error" in err


def test_a_wrong_configuration_is_told_before_anything_starts(midwatch, verb):
    calls = verb("run", "run")
    Path("midwatch.toml").write_text("[feed]\nperod_s = 1\nmax_assets = 0\n")
    code, out, err = midwatch("run")
    assert (code, out, calls) == (2, "", [])
    assert "midwatch: feed.max_assets = 0" in err
    assert "midwatch: feed.perod_s = 1: there is no such option; did you mean 'period_s'?" in err


def test_set_and_named_flags_reach_the_settings_and_named_ones_win(midwatch, verb):
    calls = verb("run", "run")
    code, _, err = midwatch("run", "--set", "run.device=cpu", "-s", "feed.channels=a,b", "--device", "cuda:1")
    assert (code, err) == (0, "")
    settings = calls[0]["settings"]
    assert settings.run.device == "cuda:1"
    assert [c.name for c in settings.feed.channels] == ["a", "b"]


@pytest.mark.parametrize("text", ["run.device", "device=cpu", "="])
def test_a_set_that_is_no_assignment_is_refused(midwatch, verb, text):
    verb("run", "run")
    code, _, err = midwatch("run", "--set", text)
    assert code == 2
    assert "SECTION.KEY=VALUE".lower() in err.lower()


def test_output_options_reach_the_console(midwatch, verb):
    calls = verb("demo", "demo")
    midwatch("demo", "--json", "-q", "-v", "--seed", "3")
    console = calls[0].pop("console")
    assert (console.as_json, console.quiet, console.verbose) == (True, True, True)
    assert calls[0] == {"folder": Path("var/demo"), "seed": 3, "device": "auto"}


@pytest.mark.parametrize(
    ("arguments", "module", "function", "given"),
    [
        ("run --slot 0", "run", "run", {}),
        ("score data.csv --model m1", "score", "score", {"path": Path("data.csv"), "out": None, "bundle": "m1"}),
        ("replay data.csv --speed 60", "replay", "replay", {"path": Path("data.csv"), "speed": 60.0}),
        ("train data.csv --no-promote", "train", "train", {"files": (Path("data.csv"),), "promote": False}),
        ("nightly --recalibrate-only", "nightly", "nightly", {"recalibrate_only": True, "as_of_ns": None}),
        (
            "nightly --as-of 1970-01-02T00:00:01.000001+01:00",
            "nightly",
            "nightly",
            {"recalibrate_only": False, "as_of_ns": 82_801_000_001_000},
        ),
        (
            "alerts list --since 1970-01-02",
            "alerts",
            "list_alerts",
            {"since_ns": 86_400_000_000_000, "asset": None, "state": None, "limit": 50},
        ),
        ("doctor", "doctor", "doctor", {}),
        ("topics check", "topics", "check", {}),
        ("topics create --partitions 6", "topics", "create", {"partitions": 6, "replication": None}),
        ("models list", "promote", "list_bundles", {}),
        ("models show m1", "promote", "show_bundle", {"bundle": "m1"}),
        ("models promote m1", "promote", "promote_bundle", {"bundle": "m1"}),
        ("models rollback", "promote", "rollback", {}),
        (
            "alerts list --asset p1 --state open --limit 3",
            "alerts",
            "list_alerts",
            {"since_ns": None, "asset": "p1", "state": "open", "limit": 3},
        ),
        ("alerts tail", "alerts", "tail_alerts", {}),
        (
            "alerts confirm a1 --note leak",
            "alerts",
            "label_alert",
            {"alert": "a1", "verdict": "confirm", "note": "leak", "by": None},
        ),
        (
            "alerts dismiss a1 --by me",
            "alerts",
            "label_alert",
            {"alert": "a1", "verdict": "dismiss", "note": "", "by": "me"},
        ),
    ],
)
def test_a_command_calls_its_module(midwatch, verb, arguments, module, function, given):
    Path("data.csv").write_text("ts,a\n")
    calls = verb(module, function, result=True)
    code, _, err = midwatch(*arguments.split())
    assert (code, err) == (0, "")
    assert type(calls[0].pop("settings")).__name__ == "Settings"
    assert calls[0].pop("console") is not None
    assert calls[0] == given


@pytest.mark.parametrize("arguments", ["score data.csv", "replay data.csv", "alerts list"])
def test_alerts_found_are_an_exit_code_only_where_asked_for(midwatch, verb, arguments):
    Path("data.csv").write_text("ts,a\n")
    for found, flag, code in ((2, ["--exit-code"], 3), (0, ["--exit-code"], 0), (2, [], 0)):
        verb("score", "score", found)
        verb("replay", "replay", found)
        verb("alerts", "list_alerts", found)
        assert midwatch(*arguments.split(), *flag)[0] == code


def test_a_doctor_who_finds_something_fails(midwatch, verb):
    verb("doctor", "doctor", False)
    assert midwatch("doctor")[0] == 1


def test_versions_are_printed_for_people_and_as_json(midwatch):
    _, text, _ = midwatch("version")
    code, out, err = midwatch("version", "--json")
    assert (code, err) == (0, "")
    versions = json.loads(out)
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert f"numpy            {versions['numpy']}" in text


def test_config_show_gives_every_value_its_origin_and_hides_secrets(midwatch, monkeypatch):
    Path("midwatch.toml").write_text("[kafka]\nsasl_username = 'me'\n")
    monkeypatch.setenv("MIDWATCH_KAFKA__SASL_PASSWORD", "geheim")
    code, out, err = midwatch("config", "show", "--json", "--set", "feed.period_s=2")
    assert (code, err) == (0, "")
    rows = {row["key"]: row for row in map(json.loads, out.splitlines())}
    assert rows["feed.period_s"] == {"key": "feed.period_s", "value": 2.0, "from": "flag"}
    assert rows["kafka.sasl_username"]["from"] == "midwatch.toml"
    assert rows["kafka.sasl_password"] == {
        "key": "kafka.sasl_password",
        "value": "**********",
        "from": "environment MIDWATCH_KAFKA__SASL_PASSWORD",
    }
    assert rows["kafka.ssl_key_password"]["value"] == ""
    assert rows["alert.quality.frames"]["from"] == "default"
    assert "geheim" not in out + midwatch("config", "show")[1]


def test_config_schema_is_json_schema(midwatch):
    code, out, _ = midwatch("config", "schema")
    assert code == 0
    assert json.loads(out)["properties"]["feed"]


def test_config_check_says_what_would_run(midwatch):
    Path("in.csv").write_text("ts,a\n")
    Path("midwatch.toml").write_text("[feed]\nname = 'pumps'\nchannels = ['a']\n[source]\npath = 'in.csv'\n")
    code, out, err = midwatch("config", "check", "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert (said["feed"], said["channels"], said["read_from"]) == ("pumps", 1, ["midwatch.toml"])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "feed.channels"),
        ("[feed]\nchannels = ['a']\n", "source.path"),
        ("[feed]\nchannels = ['a']\n[source]\ntype = 'kafka'\n[kafka]\nbootstrap = ['nowhere']\n", "kafka.bootstrap"),
        ("[feed]\nchannels = ['a']\n[alert]\nclose_at = 2\n", "alert.close_at"),
    ],
)
def test_config_check_finds_what_run_would_stumble_over(midwatch, text, key):
    Path("midwatch.toml").write_text(text)
    code, out, err = midwatch("config", "check")
    assert (code, out) == (2, "")
    assert err.startswith(f"midwatch: {key} = ")
