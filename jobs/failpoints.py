"""Failpoints: a worker that kills itself at a step of its commit, because faults at random times miss most of them.

`MIDWATCH_FAILPOINT=after_send_offsets:0.1` ends the process there in one commit of ten, as `kill -9` would. More of
them are separated by commas; a third part is a seed. Set by `midwatch chaos` and by tests, never in production.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Mapping

from pipeline.errors import ConfigError

VARIABLE = "MIDWATCH_FAILPOINT"


def read(environ: Mapping[str, str]) -> Callable[[str], None]:
    """Return what is to be called at every step, with its name; it does nothing where the variable is not set.

    Raises
    ------
    ConfigError : the variable does not say `step:probability` or `step:probability:seed`.
    """
    points = dict(_point(text) for text in environ.get(VARIABLE, "").split(",") if text)

    def at_step(step: str) -> None:
        if step in points:
            points[step]()

    return at_step


def _point(text: str) -> tuple[str, Callable[[], None]]:
    step, _, rest = text.partition(":")
    probability, _, seed = rest.partition(":")
    try:
        likely = float(probability)
    except ValueError:
        likely = -1.0
    if not step or not 0 <= likely <= 1:
        raise ConfigError(VARIABLE, text, "step:probability, e.g. after_send_offsets:0.1, or step:probability:seed")
    dice = random.Random(seed or None)  # noqa: S311 - nothing secret

    def perhaps() -> None:
        if dice.random() < likely:
            os.kill(os.getpid(), signal.SIGKILL)

    return step, perhaps
