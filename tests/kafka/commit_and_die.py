"""A worker that commits once and ends at a step: `python commit_and_die.py BOOTSTRAP MARK LIBRARY STEP TIMEOUT_S`."""

from __future__ import annotations

import os
import sys

from kafka_fixture import FeedTopics, an_alert

from pipeline.errors import Unavailable
from pipeline.protocols import AssetState, Batch


def main(bootstrap: str, mark: str, library: str, step: str, timeout_s: str) -> None:
    feed = FeedTopics(bootstrap, mark)

    def at_step(name: str) -> None:
        if name == step:
            os._exit(9)

    committer = feed.committer(library, commit_timeout_s=float(timeout_s), at_step=at_step)
    committer.restore(feed.input, 0)
    sys.stdout.write("open\n")
    sys.stdout.flush()
    sys.stdin.readline()
    state = [AssetState("pump-7", b"columns of the dead", b"window of the dead")]
    try:
        committer.commit(Batch({(feed.input, 0): 200}, [an_alert(seq=1)], states={(feed.input, 0): state}))
    except Unavailable:
        os._exit(75)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
