import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.asset_names import asset_codes, number_codes
from pipeline.errors import ConfigError
from pipeline.state import AssetTable


def codes(names, table):
    data = b"|".join(name.encode() for name in names) + b"|"
    sizes = np.array([len(name.encode()) for name in names], np.int64)
    end = np.cumsum(sizes + 1) - 1
    text = np.frombuffer(data, np.uint8)
    return asset_codes(text, end - sizes, end, table).tolist()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.text(min_size=1, max_size=4), max_size=30), max_size=4), st.lists(st.text(min_size=1)))
def test_codes_are_those_the_table_would_give_one_by_one(polls, restored):
    table, plain = AssetTable({}), AssetTable({})
    for i, names in enumerate(polls):
        names = [name for name in names if name.isprintable()]  # no lone surrogates
        if i == 1:
            for name in restored:
                table.code(name)
                plain.code(name)
        assert codes(names, table) == [plain.code(name) for name in names]
    assert table.names == plain.names


def test_many_names_find_their_way_through_a_growing_index():
    table = AssetTable({})
    names = [f"pump-{i:05d}" for i in range(3000)]
    assert codes(names, table) == list(range(3000))
    assert codes(names[::-1], table) == list(range(3000))[::-1]


def test_a_full_table_says_so_and_goes_on_with_the_assets_it_knows():
    table = AssetTable({}, max_assets=2)
    assert codes(["a", "b"], table) == [0, 1]
    with pytest.raises(ConfigError, match="'c'"):
        codes(["a", "c"], table)
    assert codes(["b", "a"], table) == [1, 0]


def test_tables_do_not_share_their_codes():
    one, other = AssetTable({}), AssetTable({})
    assert codes(["a", "b"], one) == [0, 1]
    assert codes(["b", "a"], other) == [0, 1]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-5, 5), max_size=80), max_size=4),
    st.lists(st.sampled_from(["7", "07", "-0", "+7", "7 ", "٧", "-7", "2147483648", "pump"])),
)
def test_numbers_have_the_codes_of_their_names(polls, restored):
    table, plain = AssetTable({}), AssetTable({})
    for i, numbers in enumerate(polls):
        for name in restored if i == 1 else []:
            table.code(name)
            plain.code(name)
        found = number_codes(np.array(numbers, np.int32), table)
        assert found.tolist() == [plain.code(str(n)) for n in numbers]
    assert table.names == plain.names
