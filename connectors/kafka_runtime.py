"""How Apache Kafka itself can be run on this machine: its jars on Java, or its Docker image."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.errors import Unavailable

KAFKA_VERSION: Final = "4.3.1"
IMAGE: Final = f"apache/kafka:{KAFKA_VERSION}"
_POM: Final = Path(__file__).with_name("kafka_libs.xml")
# Small and quick to start rather than fast: a trial broker shares the machine with what it is tried with.
_JAVA_FLAGS: Final = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xmx384m",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)


@dataclass(frozen=True, slots=True)
class Runtime:
    """How a main class of Kafka is started: `program` (java and a class path), in Docker if `docker` is set."""

    program: tuple[str, ...]
    docker: str = ""

    def command(self, name: str, folder: Path, main: str, *arguments: str) -> list[str]:
        """Return the command line of a main class; `folder` is what it may read and write, `name` a container's."""
        if not self.docker:
            return [*self.program, main, *arguments]
        user = f"{os.getuid()}:{os.getgid()}"
        contained = [self.docker, "run", "--rm", "--name", name, "--network", "host", "--user", user]
        contained += ["--volume", f"{folder}:{folder}", "--entrypoint", "java", IMAGE]
        return [*contained, *self.program, main, *arguments]


def find_runtime(libs: Path | None = None) -> Runtime:
    """Return how Kafka can be run here; fetches its jars into `libs` (default: `default_libs()`) if need be.

    Raises
    ------
    Unavailable : neither Java with Maven nor a Docker engine is there; says what is missing.
    """
    missing = []
    java = find_java()
    if java:
        try:
            jars = fetch_jars(libs or default_libs())
        except Unavailable as failed:
            missing.append(str(failed))
        else:
            return Runtime((java, *_JAVA_FLAGS, "-cp", f"{jars}/*"))
    else:
        missing.append("java (17 or newer) is not on the path")
    docker = shutil.which("docker")
    if docker is None:
        missing.append("docker is not on the path")
    elif run_quietly([docker, "version", "--format", "{{.Server.Version}}"], timeout_s=20).returncode:
        missing.append("no docker engine answers")
    else:
        return Runtime((*_JAVA_FLAGS, "-cp", "/opt/kafka/libs/*"), docker)
    raise Unavailable(f"no way to run Apache Kafka {KAFKA_VERSION} here: {'; '.join(missing)}")


def find_java() -> str:
    """Return the path of `java`, of JAVA_HOME where that is set; "" if there is none."""
    home = os.environ.get("JAVA_HOME", "")
    return shutil.which("java", path=str(Path(home) / "bin") if home else None) or ""


def default_libs() -> Path:
    """Return where the jars are kept: `.kafka/libs` of a checkout, else the user's cache."""
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").exists():
        return root / ".kafka" / "libs"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "midwatch" / f"kafka-{KAFKA_VERSION}"


def fetch_jars(libs: Path) -> Path:
    """Return the folder of Kafka's jars (46 files, 44 MB), fetched with Maven unless they are there.

    Raises
    ------
    Unavailable : Maven is not there, or could not fetch them.
    """
    if (libs / f"kafka_2.13-{KAFKA_VERSION}.jar").exists():
        return libs
    maven = shutil.which("mvn")
    if maven is None:
        raise Unavailable(f"Kafka's jars are not in {libs}, and mvn, which fetches them, is not on the path")
    libs.parent.mkdir(parents=True, exist_ok=True)
    # Fetched beside and renamed when complete: a broken fetch, or two at once, leave nothing half done.
    with tempfile.TemporaryDirectory(dir=libs.parent, prefix="fetch-") as beside:
        target = Path(beside) / "libs"
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={target}"]
        done = run_quietly([maven, "-B", "-q", "-f", str(_POM), *goal], timeout_s=600)
        if done.returncode:
            raise Unavailable(f"mvn could not fetch Kafka's jars:\n{last_lines(done.stdout)}")
        if libs.is_dir() and not list(libs.glob("*.jar")):
            libs.rmdir()
        with contextlib.suppress(OSError):  # another fetch was quicker
            target.rename(libs)
    if not (libs / f"kafka_2.13-{KAFKA_VERSION}.jar").exists():
        raise Unavailable(f"{libs} holds jars of another version of Kafka than {KAFKA_VERSION}: remove it")
    return libs


def run_quietly(command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; its output, errors included, is in `stdout`."""
    out, merged = subprocess.PIPE, subprocess.STDOUT
    return subprocess.run(command, stdout=out, stderr=merged, text=True, timeout=timeout_s, check=False)  # noqa: S603


def last_lines(text: str, count: int = 8) -> str:
    """Return the last lines of a log that say something, without the calls that led there."""
    telling = [line for line in text.strip().splitlines() if not line.startswith("\tat ")]
    return "\n".join(telling[-count:])
