import pytest

from pipeline.decode import FieldMapping, mapping_problem
from pipeline.errors import ConfigError

NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"channels": ()}, "feed.channels"),
        ({"channels": ("a", "a")}, "feed.channels"),
        ({"channels": ("a", "")}, "feed.channels"),
        ({"channels": ("a", "\ud800")}, "feed.channels"),
        ({"fields": ("x",)}, "feed.channels.field"),
        ({"fields": ("x", "x")}, "feed.channels.field"),
        ({"fields": ("x", "ts")}, "mapping"),
        ({"channels": ("asset", "b")}, "mapping"),
        ({"format": "csv"}, "mapping.format"),
        ({"layout": "deep"}, "mapping.layout"),
        ({"time_unit": "min"}, "mapping.time_unit"),
        ({"time": ""}, "mapping.time"),
        ({"time": "asset"}, "mapping"),
        ({"asset": ""}, "mapping.asset_value"),
        ({"asset_value": "p"}, "mapping.asset_value"),
        ({"values": "v", "layout": "long"}, "mapping.values"),
        ({"values": "v", "format": "arrow"}, "mapping.values"),
        ({"layout": "long", "sensor": "value"}, "mapping"),
        ({"low": (1.0,)}, "feed.channels.low"),
        ({"high": (1.0, NAN)}, "feed.channels.high"),
        ({"low": (1.0, 0.0), "high": (2.0, -1.0)}, "feed.channels.low"),
        ({"time_origin_ns": 1 << 63}, "mapping.time_origin"),
        ({"time_origin_ns": 1, "time_unit": "iso"}, "mapping.time_origin"),
        ({"max_ahead_ns": -1}, "mapping.max_ahead_s"),
        ({"max_bytes": 0}, "mapping.max_bytes"),
    ],
)
def test_a_mapping_that_cannot_be_used_names_the_key_and_its_value(options, key):
    with pytest.raises(ConfigError) as caught:
        FieldMapping(**({"channels": ("a", "b")} | options))
    assert caught.value.key == key
    assert repr(caught.value.value) in str(caught.value)
    assert caught.value.fix


def test_a_mapping_that_fits_has_no_problem():
    assert mapping_problem(["ts", "a", "asset", "more", "b"], FieldMapping(("a", "b"))) is None
    assert mapping_problem(["ts", "a"], FieldMapping(("x",), fields=("a",), asset="@key")) is None
    assert mapping_problem(["ts", "v"], FieldMapping(("a", "b"), values="v", asset="", asset_value="p")) is None
    assert mapping_problem(["t", "asset", "sensor", "value"], FieldMapping(("a",), layout="long", time="t")) is None


def test_a_mapping_that_does_not_fit_says_what_is_missing_and_what_is_there():
    problem = mapping_problem(["Time", "a"], FieldMapping(("a", "b"), asset="@key", time="time"))
    assert problem is not None
    assert "'time', 'b'" in problem
    assert "'Time', 'a'" in problem
    assert "none" in str(mapping_problem([], FieldMapping(("a",))))
