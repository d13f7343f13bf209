"""What every command shares: its configuration, its output, and how it is registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import Console

if TYPE_CHECKING:
    from jobs.settings import Loaded, Settings


@dataclass(frozen=True, slots=True)
class Call:
    """What every command is asked besides its own options."""

    console: Console
    file: Path | None = None
    sets: tuple[str, ...] = ()

    def load(self, flags: Mapping[str, object] | None = None) -> Loaded:
        """Read the configuration under the flags of the command and `--set`."""
        from jobs.settings import load

        given: dict[str, object] = {}
        for text in self.sets:
            key, equals, value = text.partition("=")
            if not equals or "." not in key:
                raise typer.BadParameter(f"{text!r} is not section.key=value", param_hint="--set")
            given[key] = value
        given.update({key: value for key, value in (flags or {}).items() if value is not None})
        return load(self.file, given)

    def settings(self, flags: Mapping[str, object] | None = None) -> Settings:
        """Return the settings alone."""
        return self.load(flags).settings


def _option(name: str, kind: Any, default: Any, *declared: str, **more: Any) -> inspect.Parameter:
    annotation = Annotated[kind, typer.Option(*declared, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_OUTPUT = (
    _option("as_json", bool, False, "--json", help="Print JSON, one object a line."),
    _option("quiet", bool, False, "--quiet", "-q", help="Say warnings only."),
    _option("verbose", bool, False, "--verbose", "-v", help="Say details too."),
)
_CONFIGURED = (
    _option("file", Path | None, None, "--config", "-c", metavar="FILE", help="Instead of ./midwatch.toml."),
    _option("sets", list[str], (), "--set", "-s", metavar="SECTION.KEY=VALUE", help="Set one option; repeat it."),
)


def command(
    group: typer.Typer, name: str | None = None, configured: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function `f(call, its own options)` as a command that takes the shared options too."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        shared = [*(_CONFIGURED if configured else ()), *_OUTPUT]

        def called(
            as_json: bool,
            quiet: bool,
            verbose: bool,
            file: Path | None = None,
            sets: tuple[str, ...] = (),
            **given: Any,
        ) -> None:
            function(Call(Console(as_json, quiet, verbose), file, tuple(sets)), **given)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        called.__doc__ = function.__doc__
        group.command(name or function.__name__)(called)
        return function

    return register


def time_option(name: str) -> Any:
    """Return the option for a time: ISO 8601, handed on as ns since 1970."""
    return typer.Option(name, parser=_ns, metavar="TIME", help="In ISO 8601; UTC where it has no offset.")


def _ns(text: str) -> int:
    """Read a time given by a person; without an offset it is UTC."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time: use 2026-05-04 or 2026-05-04T12:30:00Z") from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
