import numpy as np
import pump_fleet as pumps
import pytest

from connectors.file_source import FileSource
from jobs.config import specs
from jobs.gather import gather, merge, normal_unless_faulty
from pipeline.errors import InputError


def gathered(path, folder, **flags):
    spec = specs.chain_spec(pumps.settings(folder, **flags), "arrow")
    source = FileSource(path, spec.mapping)
    seen = []
    return gather(source, spec, seen.append), seen


def test_a_file_becomes_one_series_an_asset_in_event_time_order(tmp_path):
    path = pumps.write_parquet(tmp_path / "a.parquet", rows=300)
    found, seen = gathered(path, tmp_path)
    assert [s.asset for s in found.series] == ["pump-01", "pump-02", "pump-03"]
    assert found.rows == 900 == seen[-1]
    for p, one in enumerate(found.series):
        assert np.array_equal(one.x, pumps.fleet().x[p, :299])  # the last frame is not complete: more may come
        assert np.array_equal(one.ts_ns, pumps.fleet().ts_ns[:299])
        assert one.continuity[0] == 2
        assert not one.continuity[1:].any()


def test_rows_with_a_sensor_fault_are_not_normal(tmp_path):
    x = pumps.fleet().x.copy()
    x[0, 50:60, 2] = np.nan
    path = pumps.write_parquet(tmp_path / "a.parquet", x=x, rows=300)
    found, _ = gathered(path, tmp_path)
    series = normal_unless_faulty(found)
    assert np.flatnonzero(~series[0].normal).tolist() == list(range(50, 60))
    assert series[1].normal.all()
    assert found.series[0].normal.all()


def test_an_asset_goes_on_from_one_file_to_the_next_whatever_their_order(tmp_path):
    first, _ = gathered(pumps.write_parquet(tmp_path / "a.parquet", rows=200), tmp_path)
    second, _ = gathered(pumps.write_parquet(tmp_path / "b.parquet", first=200, rows=300), tmp_path)
    both = merge([second, first])
    assert both.rows == 900
    one = next(s for s in both.series if s.asset == "pump-02")
    assert np.array_equal(one.ts_ns, np.delete(pumps.fleet().ts_ns[:299], 199))
    assert np.flatnonzero(one.continuity).tolist() == [0, 199]


def test_files_that_overlap_in_time_are_refused(tmp_path):
    first, _ = gathered(pumps.write_parquet(tmp_path / "a.parquet", rows=200), tmp_path)
    second, _ = gathered(pumps.write_parquet(tmp_path / "b.parquet", first=150, rows=300), tmp_path)
    with pytest.raises(InputError, match="pump-01"):
        merge([first, second])
