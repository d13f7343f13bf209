"""The documented defaults: every option as a line of TOML under what it is, in which unit."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from jobs.config.options import Channel
from jobs.settings import Settings

_TABLES: Mapping[tuple[str, str], type[BaseModel]] = {("feed", "channels"): Channel}
_HEAD = """\
Every option of midwatch with its default. A file needs only those lines that differ.

The same key can be set by `--set section.key=value`, by the environment as MIDWATCH_SECTION__KEY (or, for secrets,
MIDWATCH_SECTION__KEY_FILE with the path of a file that holds the value), in ./midwatch.toml or the file that
`--config` names, and in ~/.config/midwatch/config.toml; the first of these wins. `midwatch config show` tells which.
"""


def document() -> str:
    """Return the documented defaults as TOML."""
    lines = [*_comment(_HEAD)]
    for name, field in Settings.model_fields.items():
        lines += _section(name, field.default)
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """Return a value of an option as TOML."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        inner = ", ".join(f"{k} = {toml_value(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(toml_value(v) for v in value)}]"
    return json.dumps(value)


def _section(name: str, section: BaseModel) -> Iterator[str]:
    yield ""
    yield from _comment(type(section).__doc__ or "")
    yield f"[{name}]"
    inner = []
    for key, field in type(section).model_fields.items():
        if isinstance(field.default, BaseModel):
            inner.append((f"{name}.{key}", field.default))
            continue
        yield from _comment(_about(field))
        yield f"{key} = {toml_value(field.default)}"
        if (name, key) in _TABLES:
            yield from _table(_TABLES[name, key])
    for path, default in inner:
        yield from _section(path, default)


def _table(model: type[BaseModel]) -> Iterator[str]:
    """Yield what may stand in one table of a list."""
    yield from _comment(model.__doc__ or "")
    for key, field in model.model_fields.items():
        default = "" if field.is_required() or field.default is None else f", default {toml_value(field.default)}"
        yield from _comment(f"{key}: {_about(field)}{default}", indent="    ")


def _about(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    unit = extra.get("unit") if isinstance(extra, dict) else ""
    return f"{field.description} [{unit}]" if unit else f"{field.description}"


def _comment(text: str, indent: str = "") -> Iterator[str]:
    for paragraph in text.strip().splitlines():
        yield from textwrap.wrap(
            paragraph, 118, initial_indent=f"# {indent}", subsequent_indent=f"# {indent}", break_on_hyphens=False
        ) or ["#"]


if __name__ == "__main__":
    (Path(__file__).parent / "default.toml").write_text(document(), encoding="utf-8")
