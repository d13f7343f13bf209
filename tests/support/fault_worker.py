"""A worker of the fault suite: the real `midwatch run`, forked from a process that has loaded everything it needs.

The fork server imports this module first (`PRELOAD`), so that a worker is there in a fraction of a second.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from jobs import exits
from jobs.console import Console
from jobs.run import run
from jobs.settings import load
from jobs.supervise import load_parts
from pipeline.errors import PipelineError

PRELOAD = "MIDWATCH_FAULTS_CONFIG"  # the configuration whose model and kernels are loaded


def watch(config: str, slot: int, log: str, environ: Mapping[str, str], mutant: str) -> None:
    """Watch until told to stop; exit codes are those of `midwatch run`."""
    sys.stderr = Path(log).open("a", buffering=1)  # noqa: SIM115 - for as long as the process lives
    logging.basicConfig(format="%(message)s")
    logging.getLogger("connectors").setLevel(logging.INFO)
    os.environ.update(environ)
    settings = load(Path(config), {"kafka.slot": slot}).settings
    if mutant:
        import mutants

        mutants.MUTANTS[mutant](settings.kafka)
    try:
        run(settings, Console())
    except PipelineError as error:
        sys.stderr.write(f"midwatch: {error}\n")
        sys.stderr.flush()
        os._exit(exits.exit_code(error))


if PRELOAD in os.environ:
    load_parts(load(Path(os.environ[PRELOAD]), environ={}).settings)
