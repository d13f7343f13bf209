"""Errors name options as the configuration file does: every literal key of a ConfigError, and every option that a
sentence of the program names, against the options."""

import ast
import re
from pathlib import Path

import pytest
import typer

from jobs.cli import app
from jobs.config.layers import trace
from jobs.settings import Settings

ROOT = Path(__file__).parents[1]
MODULES = [path for package in ("pipeline", "models", "connectors", "jobs") for path in (ROOT / package).rglob("*.py")]


def options(model=Settings, prefix=""):
    """Every section and option, tables of a list included: `feed`, `feed.channels`, `feed.channels.low`, ..."""
    for name in model.model_fields:
        yield prefix + name
        inner, _ = trace(model, (name, "-"))
        if inner is not None and inner is not model:
            yield from options(inner, f"{prefix}{name}.")


def arguments(command=None):
    """Every flag and argument of the command line, and what each command is called."""
    command = command or typer.main.get_command(app)
    yield command.name
    for parameter in command.params:
        yield from parameter.opts
    for inner in getattr(command, "commands", {}).values():
        yield from arguments(inner)


FILES = {"project file", "user file"}
OPTIONS, ARGUMENTS = set(options()), set(arguments()) | FILES
SECTIONS = "|".join(sorted(name for name in OPTIONS if "." not in name))
LAST_WORDS = {name.rpartition(".")[2] for name in OPTIONS}


def is_named(key, parameters=()):
    """Whether a key, `*` in it standing for anything, is an option, a flag, or an argument that no option sets."""
    plain = re.sub(r"\[.*?\]|\s\(.*?\)", "", key)
    if "*" in plain:
        pattern = re.escape(plain).replace(r"\*", r"\w+")
        return any(re.fullmatch(pattern, name) for name in OPTIONS)
    return plain in OPTIONS | ARGUMENTS or (plain in parameters and plain not in LAST_WORDS)


def literal(node):
    """The text of a literal key, `*` for what is filled in; None where it comes from elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
    return None


def calls_in(tree, function):
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == function and n.args]


def parameters_around(tree, node):
    """What the function or the class around a node takes."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    around = [s for s in ast.walk(tree) if isinstance(s, kinds) and s.lineno <= node.lineno <= s.end_lineno]
    taken = {a.arg for f in around if isinstance(f, ast.FunctionDef) for a in (*f.args.args, *f.args.kwonlyargs)}
    return taken | {
        field.target.id
        for cls in around
        if isinstance(cls, ast.ClassDef)
        for field in cls.body
        if isinstance(field, ast.AnnAssign)
    }


def found_in(trees):
    """(where, key, parameters around) of every literal key, also of those handed to a function that raises with it."""
    raising = {"ConfigError": 0}
    for tree in trees.values():
        for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
            taken = [argument.arg for argument in function.args.args]
            for call in calls_in(function, "ConfigError"):
                if isinstance(call.args[0], ast.Name) and call.args[0].id in taken and "self" not in taken:
                    raising[function.name] = taken.index(call.args[0].id)
    for path, tree in trees.items():
        for function, position in raising.items():
            for call in calls_in(tree, function):
                key = literal(call.args[position]) if len(call.args) > position else None
                if key is not None:
                    yield f"{path.relative_to(ROOT)}:{call.lineno}", key, parameters_around(tree, call)


def named_in(text):
    """What a sentence names that looks like an option; a text of one word is none, but a file or a module."""
    return re.findall(rf"(?<![\w./-])(?:{SECTIONS})(?:\.[a-z_*]+)+", text) if " " in text else []


def sentences(tree):
    """(line, text) of every string but docstrings, `*` for what is filled in."""
    documented = [n for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.FunctionDef, ast.ClassDef)) and n.body]
    told = {id(n.body[0].value) for n in documented if isinstance(n.body[0], ast.Expr)}
    parts = {id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values}
    for node in ast.walk(tree):
        text = literal(node)
        if text is not None and id(node) not in told | parts:
            yield node.lineno, text


def test_every_option_that_a_sentence_names_is_one():
    found = [
        (f"{path.relative_to(ROOT)}:{line}", name)
        for path in MODULES
        for line, text in sentences(ast.parse(path.read_text()))
        for name in named_in(text)
    ]
    assert len(found) > 20
    assert [(where, name) for where, name in found if not is_named(name)] == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Raise kafka.max_record_bytes and the topic's max.message.bytes", ["kafka.max_record_bytes"]),
        ("set alert.quality.frames. Then train.* again", ["alert.quality.frames", "train.*"]),
        ("kafka.net", []),
        ("see /var/kafka.log or my-kafka.slot", []),
    ],
)
def test_options_are_found_in_sentences(text, names):
    assert named_in(text) == names


def test_every_key_that_an_error_names_is_an_option_or_an_argument():
    found = list(found_in({path: ast.parse(path.read_text()) for path in MODULES}))
    assert len(found) > 80
    assert [(where, key) for where, key, parameters in found if not is_named(key, parameters)] == []


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("kafka.slot", True),
        ("slot", False),  # what the option is called by itself, even where a parameter has that name
        ("kafka.sloth", False),
        ("kafka", True),
        ("feed.channels[1].low", True),
        ("feed.channels (flow).low", True),
        ("feed.channels.lowest", False),
        ("alert.quality.frames", True),
        ("train.*", True),
        ("train.*_window", True),
        ("train.*_widow", False),
        ("--out", True),
        ("--outer", False),
        ("nodes", True),
        ("knots", False),
    ],
)
def test_the_check_tells_options_from_other_words(key, named):
    assert is_named(key, parameters={"slot", "nodes"}) == named
