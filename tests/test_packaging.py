"""What is shipped, and what it pulls in."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "models", "connectors", "jobs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)(?: ; (?P<marker>[^\\]+?))? \\$")


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def pins(lock: str) -> dict[tuple[str, str], str]:
    found = {}
    for line in (ROOT / "requirements" / f"{lock}.txt").read_text().splitlines():
        if match := PINNED.match(line):
            found[match["name"], match["marker"] or ""] = match["version"]
    return found


def normal(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()


def test_no_other_distribution_owns_our_package_names():
    owners = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        assert {normal(owner) for owner in owners.get(package, [])} <= {"midwatch"}, package


def test_our_packages_are_the_ones_of_this_checkout():
    for package in PACKAGES:
        assert Path(__import__(package).__file__) == ROOT / package / "__init__.py"


def test_tests_are_no_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert {str(path.relative_to(ROOT)) for path in sources()} <= wheel


def test_the_wheel_holds_what_the_code_reads_beside_it(wheel):
    assert {"jobs/config/default.toml", "connectors/kafka_libs.xml", *(f"{p}/py.typed" for p in PACKAGES)} <= wheel
    assert any(name.startswith("connectors/schemas/") and name.endswith(".json") for name in wheel)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
    assert not any(name.startswith("tests") or "__pycache__" in name for name in wheel)


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n" in text[:200]
    assert "Version 2.0, January 2004" in text[:200]
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_no_file_is_too_long_to_read_in_one_sitting():
    long = {
        str(path.relative_to(ROOT)): count
        for path in [*sources(), *(ROOT / "tests").rglob("*.py")]
        if (count := len(path.read_text().splitlines())) > 500
    }
    assert long == {}


UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"torch.load", "torch.save", "torch.jit.load", "torch.export.load"}
UNSAFE_ARGUMENTS = {"allow_pickle"}


def unsafe(code: str) -> list[str]:
    """Return what in a source can run code that comes with data."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [module] if module.split(".")[0] in UNSAFE_MODULES else []
            found += [name for a in node.names if (name := f"{module}.{a.name}") in UNSAFE_CALLS]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in UNSAFE_CALLS:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.keyword) and node.arg in UNSAFE_ARGUMENTS:
            found.append(node.arg)
    return found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", ["pickle"]),
        ("from joblib import load", ["joblib"]),
        ("torch.load(path)", ["torch.load"]),
        ("from torch import load", ["torch.load"]),
        ("np.load(path, allow_pickle=True)", ["allow_pickle"]),
        ("import tomllib\ntomllib.load(f)\nnp.load(path)", []),
    ],
)
def test_the_search_for_unsafe_loading_finds_it(code, found):
    assert unsafe(code) == found


def test_nothing_that_can_run_code_is_ever_loaded():
    own = {"models/export.py": ["torch.export.load"]}  # of what it has just written, by its hash
    assert {str(p.relative_to(ROOT)): hits for p in sources() if (hits := unsafe(p.read_text()))} == own


def test_every_locked_package_has_a_hash_and_no_address():
    for lock in ("runtime", "dev", "build"):
        text = (ROOT / "requirements" / f"{lock}.txt").read_text()
        assert "://" not in text, lock
        assert "-index" not in text, lock
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if not line.startswith(" "):
                assert PINNED.match(line), (lock, line)
                assert following.startswith("    --hash=sha256:"), (lock, line)


def test_the_locks_hold_what_the_project_asks_for_and_agree():
    groups = PROJECT["dependency-groups"]
    asked = {
        "runtime": PROJECT["project"]["dependencies"],
        "build": groups["build"],
        "dev": [*PROJECT["project"]["dependencies"], *groups["build"], *groups["dev"]],
    }
    dev = pins("dev")
    for lock, requirements in asked.items():
        assert {normal(r) for r in requirements} <= {normal(name) for name, _ in pins(lock)}, lock
        assert pins(lock).items() <= dev.items(), lock


def test_what_builds_the_wheel_is_locked():
    for requirement in PROJECT["build-system"]["requires"]:
        assert normal(requirement) in {normal(name) for name, _ in pins("build")}


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_every_service_of_the_compose_file_is_confined(compose):
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_our_containers_write_to_their_volume_and_tmp_only(compose):
    ours = {name: s for name, s in compose["services"].items() if s["image"] == "midwatch"}
    assert set(ours) == {"topics", "run", "nightly"}
    for service in ours.values():
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER (?!root|0)\w+$", dockerfile, re.MULTILINE)
    volume = re.search(r"^VOLUME (\S+)$", dockerfile, re.MULTILINE)[1]
    assert f"WORKDIR {volume}\n" in dockerfile
    assert [v.split(":")[1] for v in ours["run"]["volumes"]] == [volume]


def test_the_compose_file_runs_the_kafka_that_the_tests_run(compose):
    libs = (ROOT / "connectors" / "kafka_libs.xml").read_text()
    tested = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>([\d.]+)</version>", libs)[1]
    images = {s["image"] for s in compose["services"].values() if "kafka" in s["image"]}
    assert images == {f"apache/kafka:{tested}"}


def test_the_compose_file_sets_options_that_exist(compose, tmp_path, monkeypatch):
    from jobs.settings import load

    monkeypatch.chdir(tmp_path)
    settings = load(environ={"HOME": str(tmp_path), **compose["services"]["run"]["environment"]}).settings
    assert settings.source.type == "kafka"
    assert compose["services"]["topics"]["environment"] == compose["services"]["run"]["environment"]


@pytest.mark.parametrize("script", ["dev", ".ci/run"])
def test_scripts_can_be_run(script):
    path = ROOT / script
    shell = "bash" if path.read_text().startswith("#!/usr/bin/env bash") else "sh"
    assert path.stat().st_mode & 0o111
    subprocess.run([shell, "-n", str(path)], check=True)
