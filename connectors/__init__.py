"""The outside world behind `Source`, `Sink`, `Committer` and `History`."""
