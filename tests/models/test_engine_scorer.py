import numpy as np
import pytest
from naive_engine import make_bundle, make_rows

import models.engine_scorer
from models.engine import HostEngine
from models.engine_members import PcaMember
from models.engine_scorer import cuts, fallbacks, keeps_bits
from pipeline.bundle import MemberSpec


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 64, 65, 300])
@pytest.mark.parametrize("shapes", [(8, 16, 64), (64,), (1,)])
def test_batches_cover_all_rows_once_in_known_shapes_and_stay_in_the_chunk(rows, shapes):
    got = list(cuts(rows, shapes))
    assert [at for at, _ in got] == np.cumsum([0] + [shape for _, shape in got[:-1]]).tolist()
    assert {shape for _, shape in got} <= set(shapes)
    assert rows <= got[-1][0] + got[-1][1] <= -(-rows // max(shapes)) * max(shapes)


def row_sums(pick, skew):
    rows = np.arange(64, dtype=np.float32)[pick]
    return np.broadcast_to(skew(rows), (2, 1, len(rows))).transpose(0, 2, 1)


def test_rows_that_keep_their_bits_are_told_from_rows_that_do_not():
    assert keeps_bits(lambda pick: row_sums(pick, lambda rows: rows), (8, 64))
    assert not keeps_bits(lambda pick: row_sums(pick, lambda rows: rows + np.arange(len(rows)) % 4), (64,))
    assert not keeps_bits(lambda pick: row_sums(pick, lambda rows: rows + len(rows)), (8, 64))
    assert not keeps_bits(lambda pick: row_sums(pick, lambda rows: rows + np.roll(rows, 1)), (64,))


def test_batch_sizes_fall_back_to_one_and_then_to_single_rows():
    assert list(fallbacks((8, 16, 64))) == [(8, 16, 64), (64,), (1,)]


def test_a_member_whose_bits_depend_on_the_batch_size_gets_one_size_and_says_so(monkeypatch):
    def moody(self, x):
        return expect(self, x) + np.float32(len(x) * 1e-3)

    expect = PcaMember.expect
    monkeypatch.setattr(PcaMember, "expect", moody)
    engine = HostEngine(make_bundle([MemberSpec("pca", 4)]))
    assert engine.fallbacks == ("g0.m0",)


def test_a_member_whose_bits_depend_on_the_place_is_scored_row_by_row(monkeypatch):
    def moody(self, x):
        return expect(self, x) + np.arange(len(x), dtype=np.float32)[:, None]

    def pushed(engine):
        slots = engine.allocate(["a0", "a1", "a2"])
        return engine.push([(rows, slots[rows.asset])])[0].score

    bundle, rows = make_bundle([MemberSpec("pca", 4)], groups=2), make_rows(100, 5, assets=3)
    expect = PcaMember.expect
    want = pushed(HostEngine(bundle))
    monkeypatch.setattr(PcaMember, "expect", moody)
    engine = HostEngine(bundle)
    assert engine.fallbacks == ("g0.m0", "g1.m0")
    np.testing.assert_allclose(pushed(engine), want, rtol=1e-4)


def test_equal_shapes_are_tried_once_for_all_groups(monkeypatch):
    tried = []
    settle = models.engine_scorer.Scorer.settle
    monkeypatch.setattr(models.engine_scorer.Scorer, "settle", lambda self: (tried.append(self), settle(self))[1])
    HostEngine(make_bundle([MemberSpec("pca", 4), MemberSpec("pca", 3)], groups=5))
    assert len(tried) == 2
