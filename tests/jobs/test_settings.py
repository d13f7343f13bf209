import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import BaseModel

from jobs.config.document import document, toml_value
from jobs.settings import Settings, config_id, load
from pipeline.errors import ConfigError

NOWHERE = {"HOME": "/nonexistent"}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def project(text: str) -> None:
    Path("midwatch.toml").write_text(text)


def problem(flags=None, **environ) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(flags=flags, environ=NOWHERE | environ)
    return caught.value


def options(model: type[BaseModel], path=()):
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from options(field.annotation, (*path, key))
        else:
            yield (*path, key), field


def test_without_any_file_every_value_is_its_default():
    loaded = load(environ=NOWHERE)
    assert loaded.settings == Settings()
    assert loaded.origins == {}


def test_flags_win_over_environment_over_project_file_over_user_file_over_defaults(tmp_path):
    user = tmp_path / "home" / ".config" / "midwatch"
    user.mkdir(parents=True)
    (user / "config.toml").write_text("[run]\nmax_rows = 1\ncommit_interval_s = 1\nstate = 'user'\ndevice = 'cpu'\n")
    project("[run]\nmax_rows = 2\ncommit_interval_s = 2\nstate = 'project'\n")
    environ = {
        "HOME": str(tmp_path / "home"),
        "MIDWATCH_RUN__MAX_ROWS": "3",
        "MIDWATCH_RUN__COMMIT_INTERVAL_S": "3",
    }
    loaded = load(flags={"run.max_rows": 4, "run.device": None}, environ=environ)
    run = loaded.settings.run
    assert (run.max_rows, run.commit_interval_s, run.state, run.device) == (4, 3.0, "project", "cpu")
    assert loaded.settings.history.root == "var/history"
    assert {path[-1]: origin for path, origin in loaded.origins.items()} == {
        "max_rows": "flag",
        "commit_interval_s": "environment MIDWATCH_RUN__COMMIT_INTERVAL_S",
        "state": "midwatch.toml",
        "device": str(user / "config.toml"),
    }


def test_the_named_file_is_read_instead_of_the_one_in_the_folder(tmp_path):
    project("[feed]\nname = 'here'\n")
    other = tmp_path / "other.toml"
    other.write_text("[feed]\nperiod_s = 2\n")
    assert load(other, environ=NOWHERE).settings.feed.name == "feed"


def test_xdg_config_home_moves_the_user_file(tmp_path):
    (tmp_path / "xdg" / "midwatch").mkdir(parents=True)
    (tmp_path / "xdg" / "midwatch" / "config.toml").write_text("[feed]\nname = 'mine'\n")
    assert load(environ={"XDG_CONFIG_HOME": str(tmp_path / "xdg")}).settings.feed.name == "mine"


def test_tables_of_two_files_are_joined_key_by_key_and_lists_are_not(tmp_path):
    user = tmp_path / "midwatch"
    user.mkdir()
    (user / "config.toml").write_text("[feed]\nperiod_s = 5\nchannels = ['a', 'b']\n")
    project("[feed]\nchannels = ['c']\n")
    feed = load(environ={"XDG_CONFIG_HOME": str(tmp_path)}).settings.feed
    assert feed.period_s == 5
    assert [c.name for c in feed.channels] == ["c"]


@pytest.mark.parametrize(
    ("text", "names"),
    [("a,b", ["a", "b"]), ('["a", {"name": "b", "low": 0}]', ["a", "b"]), ("a, b ,", ["a", "b"])],
)
def test_lists_are_read_from_the_environment_as_words_or_json(text, names):
    feed = load(environ=NOWHERE | {"MIDWATCH_FEED__CHANNELS": text}).settings.feed
    assert [c.name for c in feed.channels] == names


def test_nested_sections_numbers_truths_and_tables_are_read_from_the_environment():
    settings = load(
        environ=NOWHERE
        | {
            "MIDWATCH_ALERT__QUALITY__FRAMES": "3",
            "MIDWATCH_ALERT__QUALITY__OF": "4",
            "MIDWATCH_SOURCE__FOLLOW": "true",
            "MIDWATCH_SOURCE__SPEED": "60",
            "MIDWATCH_ALERT__SEVERITY": '{"bad": 1.5}',
            "MIDWATCH_GATE__STUCK": "off",
        }
    ).settings
    assert (settings.alert.quality.frames, settings.alert.quality.of) == (3, 4)
    assert settings.source.follow is True
    assert settings.source.speed == 60
    assert settings.alert.severity == {"bad": 1.5}
    assert settings.gate.stuck == "off"


def test_a_secret_is_read_from_the_file_that_its_variable_names(tmp_path):
    (tmp_path / "secret").write_text("open sesame\n")
    loaded = load(environ=NOWHERE | {"MIDWATCH_KAFKA__SASL_PASSWORD_FILE": str(tmp_path / "secret")})
    assert loaded.settings.kafka.sasl_password.get_secret_value() == "open sesame"
    assert "open sesame" not in repr(loaded)


def test_a_secret_may_not_be_given_twice(tmp_path):
    (tmp_path / "secret").write_text("a")
    error = problem(MIDWATCH_KAFKA__SASL_PASSWORD_FILE=str(tmp_path / "secret"), MIDWATCH_KAFKA__SASL_PASSWORD="b")
    assert error.key == "MIDWATCH_KAFKA__SASL_PASSWORD_FILE"
    assert "unset one" in error.fix


def test_a_secret_file_that_is_not_there_is_named():
    error = problem(MIDWATCH_KAFKA__SASL_PASSWORD_FILE="nowhere/secret")
    assert (error.key, error.value) == ("MIDWATCH_KAFKA__SASL_PASSWORD_FILE", "nowhere/secret")


@pytest.mark.parametrize(
    ("flags", "key", "words"),
    [
        ({"feed.perod_s": 1}, "feed.perod_s", ["no such option", "'period_s'"]),
        ({"fede.name": "x"}, "fede", ["no such option", "'feed'"]),
        ({"feed.channels": [{"name": "a", "lo": 1}]}, "feed.channels[0].lo", ["'low'"]),
        ({"feed.channels": [{"low": 1}]}, "feed.channels[0].name", ["is required"]),
        ({"feed.channels": ["a", {"name": "b", "low": "x"}]}, "feed.channels[1].low", ["valid number", "out of range"]),
        ({"feed.channels": ["a", "a"]}, "feed.channels", ["twice"]),
        ({"feed.channels": [{"name": "a", "low": 2, "high": 1}]}, "feed.channels (a).low", ["below high (1.0)"]),
        ({"feed.channels": "[1"}, "feed.channels", ["valid JSON"]),
        ({"feed.period_s": 0}, "feed.period_s", ["greater than 0", "time between two rows", "set by flag"]),
        ({"feed.period_s": float("nan")}, "feed.period_s", ["finite"]),
        ({"feed.name": "../up"}, "feed.name", ["pattern"]),
        ({"mapping.asset": ""}, "mapping.asset_value", ["must name the asset"]),
        ({"mapping.time_origin": datetime(1970, 1, 1)}, "mapping.time_origin", ["timezone"]),
        ({"align.max_gap_s": "atuo"}, "align.max_gap_s", ["a valid number, or 'auto'"]),
        ({"align.max_gap_s": 0.5}, "align.max_gap_s", ["feed.period_s (1.0)"]),
        ({"align.max_gap_s": 60, "align.retire_after_s": 60}, "align.retire_after_s", ["longer than"]),
        ({"gate.stuck": 1}, "gate.stuck", ["equal to 2, or 'auto', or 'off'"]),
        ({"train.members": "pcaa"}, "train.members[0]", ["must be 'pca', "]),
        ({"train.members": []}, "train.members", ["at least 1"]),
        ({"train.conv_kernels": "5,x"}, "train.conv_kernels[1]", ["valid integer"]),
        ({"history.keep_days": 27}, "history.keep_days", ["train.days", "(28)"]),
        ({"history.keep_days": 30, "train.recalibrate_days": 31}, "history.keep_days", ["recalibrate_days", "(31)"]),
        ({"kafka.slot": 1}, "kafka.slot", ["kafka.slots (1)"]),
        ({"kafka": "x"}, "kafka", ["must be a table"]),
        ({"run.device": "gpu"}, "run.device", ["pattern", "cuda:N"]),
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_the_fix(flags, key, words):
    error = problem(flags)
    assert error.key == key
    for word in words:
        assert word in error.fix


def test_every_wrong_key_is_told_at_once():
    project("[feed]\nperiod_s = -1\n[alert]\nframes = 99\n")
    error = problem()
    assert error.key == "feed.period_s"
    assert "set by midwatch.toml" in error.fix
    assert [note.split(" = ")[0] for note in error.__notes__] == ["alert.frames"]


def test_a_variable_of_an_unknown_section_is_an_error_and_others_are_not_ours():
    assert "did you mean 'feed'" in problem(MIDWATCH_FEDE__NAME="x").fix
    assert load(environ=NOWHERE | {"MIDWATCH_DATA": "/data", "OTHER_FEED__NAME": "x"}).origins == {}


def test_no_error_ever_shows_a_secret():
    for name in ("MIDWATCH_KAFKA__SASL_PASSWROD", "MIDWATCH_KAFAK__SASL_PASSWORD", "MIDWATCH_KAFKA__SASL_PASSWORD__X"):
        assert "geheim" not in str(problem(**{name: "geheim"})), name
    project("[kafka]\nsasl_password = ['geheim']\n")
    assert "geheim" not in str(problem())


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"[feed\n", "line 1"), (b"[feed]\nname = 'a'\nname = 'b'\n", "TOML"), (b"\xff", "UTF-8")],
)
def test_a_file_that_is_no_toml_is_an_error_that_says_where(content, words):
    Path("midwatch.toml").write_bytes(content)
    error = problem()
    assert (error.key, error.value) == ("project file", "midwatch.toml")
    assert words in error.fix


def test_a_named_file_that_is_not_there_is_an_error():
    with pytest.raises(ConfigError, match=r"gone\.toml': cannot be read"):
        load(Path("gone.toml"), environ=NOWHERE)


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Settings().feed.name = "other"


def test_every_option_says_what_it_is_and_in_which_unit():
    for path, field in options(Settings):
        assert field.description, path
        assert isinstance(field.json_schema_extra, dict), path
        assert "unit" in field.json_schema_extra, path


def test_options_named_for_seconds_are_in_seconds():
    for path, field in options(Settings):
        assert path[-1].endswith("_s") == (field.json_schema_extra["unit"] == "s"), path


def test_the_documented_defaults_are_those_of_the_program():
    committed = Path(__file__).parents[2] / "jobs" / "config" / "default.toml"
    assert committed.read_text() == document(), "write it again: python -m jobs.config.document"
    Path("midwatch.toml").write_text(document())
    loaded = load(environ=NOWHERE)
    assert loaded.settings == Settings()
    assert len(loaded.origins) >= sum(1 for _ in options(Settings))


@pytest.mark.parametrize("value", [True, 3, 2.5, 'a "b" \\', [1, "x"], {"a": 1.0}, datetime(2026, 1, 2, tzinfo=UTC)])
def test_a_value_written_as_toml_is_read_as_the_same_value(value):
    assert tomllib.loads(f"v = {toml_value(value)}")["v"] == value


def test_the_schema_is_strict_and_describes_every_option():
    schema = Settings.model_json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    for name, definition in schema["$defs"].items():
        assert definition["additionalProperties"] is False, name
        for key, entry in definition["properties"].items():
            assert "description" in entry or "$ref" in entry, (name, key)


def test_the_config_id_follows_what_alerts_depend_on_and_nothing_else():
    def id_of(**flags):
        return config_id(load(flags={k.replace("__", "."): v for k, v in flags.items()}, environ=NOWHERE).settings)

    same = id_of()
    assert len(same) == 12
    for flags in (
        {"kafka__bootstrap": "other:9092"},
        {"kafka__slot": 1, "kafka__slots": 2},
        {"run__device": "cpu"},
        {"run__max_rows": 1},
        {"feed__max_assets": 7},
        {"source__speed": 60},
        {"history__root": "x"},
        {"feed__period_s": "1"},
    ):
        assert id_of(**flags) == same, flags
    for flags in (
        {"feed__name": "x"},
        {"feed__channels": "a"},
        {"mapping__time_unit": "s"},
        {"align__lateness_s": 1},
        {"gate__stuck": "off"},
        {"smoother__ewma_span": 9},
        {"alert__frames": 1},
        {"alert__quality__cooldown_s": 1},
    ):
        assert id_of(**flags) != same, flags


def test_the_config_id_does_not_change_between_versions_by_accident():
    """A new id renames the rules of every alert: whoever changes a default on purpose changes this with it."""
    assert config_id(Settings()) == "bab6b101065d"
