"""Names: of files, tests and what they hold."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "models", "connectors", "jobs")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
VAGUE = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "handler", "data", "df"}


def where(path: Path) -> str:
    return str(path.relative_to(ROOT))


def words(name: str) -> set[str]:
    return set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_"))


@cache
def definitions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def defined(path: Path, *kinds: type[ast.AST]) -> list[str]:
    return [node.name for node in definitions(path) if isinstance(node, kinds)]


def test_no_module_is_called_after_another_that_can_be_imported():
    """Run from its own folder, a file named like a module of Python or of a dependency takes its place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    taken = {re.match(r"[\w-]+", r)[0].replace("-", "_") for r in project["dependencies"]}
    taken |= set(sys.stdlib_module_names) | {"kafka", "prometheus_client", *PACKAGES}
    assert [where(p) for p in MODULES if p.stem in taken] == []


def test_the_map_names_every_module_of_the_fold():
    (row,) = (line for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if line.startswith("| `pipeline/`"))
    named = set(re.findall(r"`(\w+)`", row)) | {"__init__"}
    modules = {path.stem for path in MODULES if path.parent.name == "pipeline" and not path.stem.startswith("decode")}
    assert modules - named == set()


def test_no_file_and_no_class_has_a_name_that_says_nothing():
    assert [where(p) for p in MODULES if words(p.stem) & VAGUE] == []
    vague = [(where(p), name) for p in MODULES for name in defined(p, ast.ClassDef) if words(name) & VAGUE]
    assert vague == []
    assert [(where(p), n) for p in MODULES for n in defined(p, ast.ClassDef) if n.startswith("Base")] == []


def test_no_function_is_called_process_or_predict():
    """`process` says nothing, and the sign of `predict` and `decision_function` differs between libraries."""
    wrong = {"process", "predict", "decision_function", "run_all"}
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert [(where(p), n) for p in MODULES for n in defined(p, *functions) if n in wrong] == []


def test_test_files_have_names_of_their_own():
    assert [name for name, times in Counter(p.name for p in TESTS).items() if times > 1] == []


def test_tests_are_sentences():
    short = [
        (where(p), name)
        for p in TESTS
        for name in defined(p, ast.FunctionDef)
        if name.startswith("test_") and len(name.split("_")) < 4
    ]
    assert short == []


def test_no_test_asserts_a_constant():
    idle = [
        (where(path), test.name)
        for path in TESTS
        for test in definitions(path)
        for node in ast.walk(test)
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant)
    ]
    assert idle == []


def test_committed_text_names_no_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        files = [*MODULES, *TESTS]
    else:
        files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    found = []
    pattern = re.compile(r"(?<![\w.])/(?:work|root|tmp/[a-z])\w*")
    for path in files:
        if path == Path(__file__) or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [(where(path), hit) for hit in pattern.findall(text)]
    assert found == []
