"""Exit codes, and which error ends the program with which."""

from __future__ import annotations

from pipeline.errors import ConfigError, GateRefused, PipelineError, Unavailable

OK = 0
FAILED = 1
USAGE = 2
ALERTS_FOUND = 3
REFUSED = 4
UNAVAILABLE = 75  # EX_TEMPFAIL: try again later
INTERRUPTED = 130  # 128 + SIGINT

MEANINGS = {
    OK: "done",
    FAILED: "failed",
    USAGE: "wrong usage or configuration; nothing was started",
    ALERTS_FOUND: "there were alerts (only with --exit-code)",
    REFUSED: "the candidate model was refused by its gate",
    UNAVAILABLE: "something outside is not there now; try again later",
    INTERRUPTED: "stopped by Ctrl-C",
}


def exit_code(error: PipelineError) -> int:
    """Return the exit code that an error ends the program with."""
    if isinstance(error, ConfigError):
        return USAGE
    if isinstance(error, GateRefused):
        return REFUSED
    if isinstance(error, Unavailable):
        return UNAVAILABLE
    return FAILED
