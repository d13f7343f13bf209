import numpy as np
import pytest
import torch

from models.device_lanes import Graphs, Lane, streams_of
from models.device_rings import DeviceRings

needs_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_lane_sends_its_rows_does_the_work_and_fetches_the_results(device):
    where = torch.device(device)
    streams = streams_of(where)
    lanes = [Lane(8, 4, 3, 2, where, streams) for _ in range(2)]
    for turn in range(6):
        lane = lanes[turn % 2]
        lane.piece.rows[:5] = turn + np.arange(15, dtype=np.float32).reshape(5, 3)

        def work(lane=lane):
            lane.results[:, :, :8] = 2 * lane.sent.rows

        lane.launch(work, 5, 4)
        lane.finish()
        np.testing.assert_array_equal(lane.told[1, 1, :4], 2 * lane.piece.rows[:4])
        assert not lane.told[:, :, 4:].any()


@pytest.mark.parametrize("device", DEVICES)
def test_work_runs_every_time_it_is_asked_for_captured_or_not(device):
    where = torch.device(device)
    graphs, total, step = Graphs(where), torch.zeros(1, device=where), torch.ones(1, device=where)
    for _ in range(5):
        graphs.run("add", lambda: total.add_(step))
    step.fill_(10)
    graphs.run("add", lambda: total.add_(step))
    graphs.forget()
    graphs.run("add", lambda: total.add_(step))
    assert total.item() == 25


def test_a_window_on_the_device_is_one_run_wherever_the_ring_stands():
    """Each row twice, N apart: every window of the last rows can be read at any time."""
    one = np.ones((1, 2), np.float32)
    rings = DeviceRings(3, 0 * one, one, 100.0, torch.device("cpu"))
    (slot,) = rings.allocate(np.zeros(1, np.int32))
    out = torch.zeros(1, 6)
    for t in range(20):
        at = (int(slot) + 1) * 2 * rings.ring_rows + t % rings.ring_rows
        rings.scatter(torch.tensor([at]), torch.full((1, 2), float(t)))
        if t >= 2:
            first = (t - 2) % rings.ring_rows + (int(slot) + 1) * 2 * rings.ring_rows
            rings.gather(torch.tensor([first]), out)
            assert out.tolist() == [[t - 2, t - 2, t - 1, t - 1, t, t]]
