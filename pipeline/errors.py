"""Every error that midwatch raises on purpose, as one tree. `retriable` is what retry loops read.

PipelineError
├── ConfigError            a key, its value and the fix; exit code 2, before anything starts
├── InputError             what came in cannot be used: names what, where and what to do
│   ├── SchemaError        columns or shapes that do not match the mapping: lists what was found
│   └── ShapeError         an array of another shape or dtype than agreed
├── TrainingError          a model could not be fitted
│   ├── TooLittleHistory   how much there is, how much is needed
│   └── LeakageError       two splits share a window
├── BundleError            a bundle that is damaged, or does not fit: refused, the champion stays
├── GateRefused            a candidate that may not be promoted, with the reasons; exit code 4
├── StateError             saved state that does not fit this program or this log
│   └── Fenced             a newer process has taken this one's place
└── Unavailable            something outside is not there; retriable, exit code 75
    ├── BrokerUnavailable
    │   └── Rebalanced     the group moved partitions while a commit was under way: nothing was committed
    ├── DeviceUnavailable  an accelerator that is lost or full: the watch goes on with the CPU
    └── SinkUnavailable    a sink that does not take what it is given (disk full, topic missing)
        └── InUse          another process has the file
"""

from __future__ import annotations


class PipelineError(Exception):
    """Root of the tree. `retriable`: the same call may succeed later, nothing else needs to change."""

    retriable = False


class ConfigError(PipelineError):
    """A configuration that cannot be used. Raised before anything starts."""

    def __init__(self, key: str, value: object, fix: str) -> None:
        super().__init__(f"{key} = {value!r}: {fix}")
        self.key = key
        self.value = value
        self.fix = fix


class InputError(PipelineError):
    """Input that cannot be used."""


class SchemaError(InputError):
    """Columns or fields do not match the mapping; the message lists those that were found."""


class ShapeError(InputError):
    """An array of another shape or dtype than agreed."""


class TrainingError(PipelineError):
    """A model could not be fitted."""


class TooLittleHistory(TrainingError):  # noqa: N818 - reads as the fact it states
    """Not enough confirmed-normal rows to train on."""

    def __init__(self, have: int, need: int, what: str) -> None:
        super().__init__(f"{have} {what}, {need} needed: collect {need - have} more, or ask for a smaller window")
        self.have = have
        self.need = need


class LeakageError(TrainingError):
    """Two splits share a window, so that what is measured was seen in training."""


class BundleError(PipelineError):
    """A bundle that is damaged, tampered with, or made for something else. The champion stays."""


class GateRefused(PipelineError):  # noqa: N818 - reads as the fact it states
    """A candidate that may not be promoted."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


class StateError(PipelineError):
    """Saved state that does not fit this program, this configuration or this log."""


class Fenced(StateError):  # noqa: N818 - reads as the fact it states
    """A newer process has taken this one's place: this one is of no more use."""


class Unavailable(PipelineError):  # noqa: N818 - reads as the fact it states
    """Something outside is not there now."""

    retriable = True


class BrokerUnavailable(Unavailable):
    """The broker does not answer."""


class DeviceUnavailable(Unavailable):
    """An accelerator that is lost, or whose memory is full."""


class Rebalanced(BrokerUnavailable):
    """Partitions may belong to other workers now. What was about to be committed was not."""


class SinkUnavailable(Unavailable):
    """A sink does not take what it is given."""


class InUse(SinkUnavailable):
    """Another process has the file; it is free when that one lets go or ends."""
