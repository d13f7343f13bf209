"""Two sets of buffers between host and device that take turns, so that copies and products of two pieces overlap.

On CUDA a lane's rows go in on one stream, are worked on in a second and come out on a third, in that order by events;
the host waits only when it takes a lane again. On the CPU the same copies are made one after the other.

Legend: B rows of the largest piece, C channels, M members.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from models.device_rings import Piece, new_piece

MOST_GRAPHS = 1024  # of groups, lanes and batch sizes


class Sent(NamedTuple):
    """What of a piece crosses to the device."""

    rows: Tensor  # (B, C) float32
    target: Tensor  # (B,) int64
    start: Tensor  # (B,) int64
    last: Tensor  # (B,) int64


class Streams(NamedTuple):
    """The streams of one engine on CUDA."""

    inward: torch.cuda.Stream
    work: torch.cuda.Stream
    outward: torch.cuda.Stream


class Lane:
    """One piece on its way to the device and back.

    Attributes
    ----------
    piece : where the host plans; its arrays are pinned on CUDA.
    sent : the piece as the device has it.
    results : (M, 2, B, C) on the device: the last rows as members expect them, and residuals.
    told : the same on the host, once `finish` has returned.
    """

    def __init__(
        self, size: int, rows: int, channels: int, members: int, device: torch.device, streams: Streams | None
    ) -> None:
        self._streams = streams
        plain = new_piece(size, rows, channels)
        host = Sent(*(torch.from_numpy(getattr(plain, name)) for name in Sent._fields))
        if streams is not None:
            host = Sent(*(tensor.pin_memory() for tensor in host))
            self._arrived, self._worked, self._out = (_event() for _ in range(3))
        self._host = host
        self.piece: Piece = plain._replace(**{name: getattr(host, name).numpy() for name in Sent._fields})
        self.sent = Sent(*(tensor.to(device, copy=True) for tensor in host))
        self.results = torch.zeros(members, 2, size, channels, device=device)
        self.told = torch.zeros(self.results.shape, pin_memory=streams is not None)
        if streams is not None:
            torch.cuda.synchronize(device)  # the buffers are there before another stream writes to them

    def launch(self, work: Callable[[], None], rows: int, windows: int) -> None:
        """Send the first `rows` of the piece, do the work, fetch the results of the first `windows`."""
        if self._streams is None:
            self._send(rows)
            work()
            self._fetch(windows)
            return
        with torch.cuda.stream(self._streams.inward):
            self._send(rows)
            self._arrived.record()
        with torch.cuda.stream(self._streams.work):
            self._arrived.wait()
            work()
            self._worked.record()
        with torch.cuda.stream(self._streams.outward):
            self._worked.wait()
            self._fetch(windows)
            self._out.record()

    def finish(self) -> None:
        """Wait until the results are here."""
        if self._streams is not None:
            self._out.synchronize()

    def _send(self, rows: int) -> None:
        for here, there in zip(self._host, self.sent, strict=True):
            there[:rows].copy_(here[:rows], non_blocking=True)

    def _fetch(self, windows: int) -> None:
        self.told[:, :, :windows].copy_(self.results[:, :, :windows], non_blocking=True)


class Graphs:
    """Work that is captured as CUDA graphs, the second time it is asked for; run as it is on the CPU.

    Work is always run once uncaptured, since libraries set themselves up at first use. It must touch the same tensors
    every time and leave its results in them; `forget` when one of them moved. Graphs run one after the other, so they
    share the memory of what lies between their kernels.
    """

    def __init__(self, device: torch.device) -> None:
        self._captures = device.type == "cuda"
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Run the work of that name on the current stream."""
        if not self._captures:
            work()
        elif key in self._graphs:
            self._graphs[key].replay()
        elif key in self._seen and len(self._graphs) < MOST_GRAPHS:
            self._graphs[key] = self._captured(work)
            self._graphs[key].replay()
        else:
            self._seen.add(key)
            work()

    def forget(self) -> None:
        """Capture everything anew."""
        self._seen.clear()
        self._graphs.clear()

    def _captured(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.current_stream()):
            work()
        return graph


def streams_of(device: torch.device) -> Streams | None:
    """Return three streams on CUDA, None elsewhere."""
    if device.type != "cuda":
        return None
    return Streams(*(torch.cuda.Stream(device) for _ in range(3)))  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
