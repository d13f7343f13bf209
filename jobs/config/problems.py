"""What pydantic found wrong, as errors that name the key, its value, where it was set and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from jobs.config.layers import DEFAULT, HIDDEN, Path_, nearest, origin_of, trace
from pipeline.errors import ConfigError


def config_errors(error: ValidationError, model: type[BaseModel], origins: Mapping[Path_, str]) -> list[ConfigError]:
    """Return one error for each key that cannot be used, in the order of the sections."""
    found: dict[Path_, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False, include_context=False):
        found.setdefault(trace(model, details["loc"])[1], []).append(details)
    return [_config_error(path, details, model, origins) for path, details in found.items()]


def _config_error(
    path: Path_, details: Sequence[ErrorDetails], model: type[BaseModel], origins: Mapping[Path_, str]
) -> ConfigError:
    owner, _ = trace(model, path)
    known = owner.model_fields if owner is not None else {}
    key, kind, origin = str(path[-1]), details[0]["type"], origin_of(path, origins)
    value = None if kind == "missing" else details[0]["input"]
    if kind == "extra_forbidden":
        fix = f"there is no such option{nearest(key, known)}"
        hidden = origin.startswith("environment")  # a secret's name, mistyped?
    else:
        option = known.get(key)
        fix = _wanted(details) + (f" ({option.description})" if option and option.description else "")
        hidden = option is not None and option.annotation is SecretStr
    where = "" if origin == DEFAULT else f"; set by {origin}"
    return ConfigError(_dotted(path), HIDDEN if hidden else value, fix + where)


def _wanted(details: Sequence[ErrorDetails]) -> str:
    """Return what the value must be, from the alternatives that pydantic tried."""
    wanted = []
    for each in details:
        text = each["msg"].split(", unable to parse")[0].removeprefix("Input should be ")
        if each["type"] == "model_type":
            text = "a table"
        if text not in wanted:
            wanted.append(text)
    return "is required" if details[0]["type"] == "missing" else f"must be {', or '.join(wanted)}"


def _dotted(path: Path_) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")
