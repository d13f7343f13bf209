"""Where values come from: layers of plain tables, laid over one another, with the origin of every value."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_settings import BaseSettings, EnvSettingsSource

from pipeline.errors import ConfigError

HIDDEN = "**********"
DEFAULT = "default"

Path_ = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """Tables that one place gave, and what that place is called."""

    origin: str
    values: Mapping[str, Any]


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[Path_, str]]:
    """Lay layers over one another, the strongest first; return the values and each one's origin.

    Tables are joined key by key; anything else, lists too, is taken whole from the strongest layer that has it.
    """
    values: dict[str, Any] = {}
    origins: dict[Path_, str] = {}
    for layer in layers:
        _fill(values, layer.values, (), layer.origin, origins)
    return values, origins


def origin_of(path: Path_, origins: Mapping[Path_, str]) -> str:
    """Return where the value at `path` came from: the place that gave it, or the list or table it is in."""
    for end in range(len(path), 0, -1):
        if path[:end] in origins:
            return origins[path[:end]]
    return DEFAULT


def flag_layer(flags: Mapping[str, object]) -> Layer:
    """Return the layer of command-line flags, given as dotted key -> value; None is a flag that was not given."""
    values: dict[str, Any] = {}
    for key, value in flags.items():
        if value is not None:
            _put(values, key.split("."), value)
    return Layer("flag", values)


def file_layer(path: Path, what: str) -> Layer:
    """Read one TOML file.

    Raises
    ------
    ConfigError : it cannot be read, or is no TOML.
    """
    try:
        return Layer(str(path), tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(what, str(path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(what, str(path), f"is not UTF-8 (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(what, str(path), f"is not valid TOML: {error}") from None


def environment_layers(environ: Mapping[str, str], settings: type[BaseSettings]) -> list[Layer]:
    """Return one layer for each variable `PREFIX_SECTION__KEY`, so that every value names the variable it is from.

    `..._FILE` names a file that holds the value, unless there is an option of that very name.

    Raises
    ------
    ConfigError : a variable for a section that does not exist, a file that cannot be read, or both forms at once.
    """
    prefix, delimiter = str(settings.model_config["env_prefix"]), "__"
    layers = []
    for name in sorted(n for n in environ if n.startswith(prefix) and delimiter in n):
        path = name.removeprefix(prefix).lower().split(delimiter)
        value = environ[name]
        if path[0] not in settings.model_fields:
            raise ConfigError(name, HIDDEN, f"there is no section {path[0]!r}{nearest(path[0], settings.model_fields)}")
        plain = name.removesuffix("_FILE")
        if plain != name and not _is_option(settings, path):
            if plain in environ:
                raise ConfigError(name, value, f"{plain} is set too: unset one of them")
            name, value = plain, _content(name, value)
        source = EnvSettingsSource(settings)
        source.env_vars = {name.lower(): value}
        layers.append(Layer(f"environment {name}", source()))
    return layers


def nearest(key: str, known: Iterable[str]) -> str:
    """Return a suggestion for a key that does not exist, or nothing."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def trace(model: type[BaseModel], path: Sequence[str | int]) -> tuple[type[BaseModel] | None, Path_]:
    """Follow a path through the sections.

    Return the model that its last name belongs to (which may not know it), and the path without what is no key: the
    names that pydantic gives to the members of a union.
    """
    owner: type[BaseModel] | None = None
    at: Any = model
    kept: list[str | int] = []
    for part in path:
        section = _section_of(at)
        if isinstance(part, int):
            kept.append(part)
        elif section is not None:
            kept.append(part)
            owner, field = section, section.model_fields.get(part)
            at = field.annotation if field is not None else None
    return owner, tuple(kept)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model inside an annotation, through tuples and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_of(inner) for inner in get_args(annotation))
    return next((model for model in found if model is not None), None)


def _is_option(settings: type[BaseModel], path: Sequence[str]) -> bool:
    owner, _ = trace(settings, path)
    return owner is not None and path[-1] in owner.model_fields


def _content(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(name, path, f"cannot be read: {error.strerror}") from None


def _put(values: dict[str, Any], path: Sequence[str], value: object) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value


def _fill(into: dict[str, Any], values: Mapping[str, Any], path: Path_, origin: str, origins: dict[Path_, str]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key, {}), dict):
            _fill(into.setdefault(key, {}), value, (*path, key), origin, origins)
        elif key not in into:
            into[key] = value
            origins[(*path, key)] = origin
