import numpy as np

from pipeline.alert import AlertSpec, LifeCycleSpec
from pipeline.align import AlignSpec
from pipeline.bundle import SmootherSpec
from pipeline.chain import Chain, ChainSpec
from pipeline.gate import GateSpec
from pipeline.mapping import FieldMapping
from pipeline.protocols import RawWindows
from pipeline.values import NS_PER_S, Polled
from pipeline.window_bytes import pack_windows


def test_the_size_of_a_state_is_known_before_there_is_one_and_grows_with_what_is_kept():
    mapping = FieldMapping(channels=("a", "b"), time_unit="s")
    align = AlignSpec(
        mode="grid",
        period_ns=NS_PER_S,
        lateness_ns=20 * NS_PER_S,
        max_gap_ns=60 * NS_PER_S,
        retire_after_ns=100 * NS_PER_S,
    )
    gate = GateSpec(stuck_frames=(0, 0), max_step=(np.inf, np.inf), missing_frames=10)
    chain = Chain(ChainSpec(mapping, align, gate, SmootherSpec(), AlertSpec("f", "c", ("a", "b"), LifeCycleSpec())))
    raw = RawWindows(np.zeros((1, 7, 2), np.float32), np.ones((1, 7, 2), np.bool_), np.array([5], np.int32))
    window = len(*pack_windows(raw))
    empty = chain.state_bytes(7)
    lines = [b'{"asset": "p", "ts": %d, "a": 1.5, "b": 2}' % ts for ts in range(19)]
    chain.push([Polled("t", 0, np.arange(19), np.zeros(19, np.int64), lines)])
    (state,) = chain.take_states({("t", 0): (1, 0)})[0]["t", 0]
    assert chain.state_bytes(7) == len(state.columns) + window
    assert empty < chain.state_bytes(7), "frames wait for late readings"


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
