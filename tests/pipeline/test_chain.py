import numpy as np

from pipeline.alert import AlertSpec, LifeCycleSpec
from pipeline.align import AlignSpec
from pipeline.bundle import SmootherSpec
from pipeline.chain import Chain, ChainSpec
from pipeline.gate import GateSpec
from pipeline.mapping import FieldMapping
from pipeline.values import NS_PER_S, Polled


def test_every_message_row_and_frame_is_counted_once():
    mapping = FieldMapping(channels=("a",), time_unit="s")
    align = AlignSpec(mode="grid", period_ns=NS_PER_S, max_gap_ns=10 * NS_PER_S, retire_after_ns=100 * NS_PER_S)
    gate = GateSpec(stuck_frames=(0,), max_step=(np.inf,), missing_frames=10)
    chain = Chain(ChainSpec(mapping, align, gate, SmootherSpec(), AlertSpec("f", "c", ("a",), LifeCycleSpec())))
    lines = [b'{"asset": "p", "ts": %d, "a": 1.5}' % ts for ts in (0, 1, 1, 4, 0)] + [b"nothing"]
    counts = chain.push([Polled("t", 0, np.arange(6), np.zeros(6, np.int64), lines)]).counts
    assert counts["messages"] == 6
    assert counts["rows"] == 5
    assert counts["dead"] == 1
    assert counts["frames"] == 2  # that of 4 s, and what lies before it, is pending
    assert (counts["bridged"], counts["merged"], counts["late"]) == (0, 1, 1)
    assert counts["scored"] == 0
