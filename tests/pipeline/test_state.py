import numpy as np
import pytest

from pipeline.errors import ConfigError, StateError
from pipeline.state import AssetTable, Column

COLUMNS = {
    "a": Column(np.int64, (), -1),
    "ring": Column(np.float32, (-1, 2), 7),
    "rec": Column(np.dtype([("x", "i4"), ("y", "f8")]), (2,), (3, 0.5)),
}


def test_a_new_asset_has_every_columns_default():
    t = AssetTable(COLUMNS)
    assert t.code("p") == 0
    assert t["a"][0] == -1
    assert (t["ring"][0] == 7).all()
    assert t["rec"][0, 1]["y"] == 0.5


def test_growing_the_table_and_widening_a_column_keep_what_is_there():
    t = AssetTable(COLUMNS)
    for i in range(100):
        code = t.code(f"p{i}")
        t["ring"][code, 1] = i
    t.widen("ring")
    assert t["ring"].shape[1] == 8
    assert (t["ring"][:100, 1, 0] == np.arange(100)).all()
    assert (t["ring"][:100, 4:] == 7).all()


def test_a_packed_asset_comes_back_into_any_table_of_the_same_layout():
    t = AssetTable(COLUMNS)
    code = t.code("p")
    t.widen("ring")
    t["ring"][code, 6] = 1.5
    t["rec"][code, 0] = (9, 2.5)
    other = AssetTable(COLUMNS)
    other.code("q")
    back = other.unpack("p", t.pack(code))
    assert other.pack(back) == t.pack(code)
    wide = AssetTable(COLUMNS)
    wide.widen("ring"), wide.widen("ring")
    back = wide.unpack("p", t.pack(code))
    assert (wide["ring"][back, :8] == t["ring"][code]).all()


def test_state_of_another_layout_is_refused_by_name():
    t = AssetTable(COLUMNS)
    t.code("p")
    with pytest.raises(StateError, match="asset 'p'"):
        AssetTable({"a": Column(np.int64)}).unpack("p", t.pack(0))


def test_one_asset_too_many_is_a_configuration_error_that_names_it():
    t = AssetTable(COLUMNS, max_assets=1)
    t.code("p")
    with pytest.raises(ConfigError, match="max_assets"):
        t.code("q")
