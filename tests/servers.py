"""Real servers for the tests: started once a session on free loopback ports, stopped at its end (docs/testing.md).

A server that one already has is used where the environment names it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.peers.programs import absent, cache_folder, free_port, is_open, need, one_at_a_time, wait_for


class RedisServer:
    """One redis-server of our own; it can be killed and started again on the same port and folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        program = need("redis-server", "redis-server")
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        command += ["--save", "", "--appendonly", "no", *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(lambda: is_open(self.port), "redis-server", self._process)
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


KAFKA = "4.1.0"
_POM = Path(__file__).parent / "kafka" / "pom.xml"


def kafka_libraries() -> Path:
    """The broker's jars, fetched once by Maven into the user's cache."""
    libraries = cache_folder() / f"kafka-{KAFKA}" / "libs"
    if any(libraries.glob("kafka_2.13-*.jar")):
        return libraries
    maven = need("mvn", "maven")
    with one_at_a_time():
        if not any(libraries.glob("kafka_2.13-*.jar")):
            command = [maven, "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies"]
            command += [f"-DoutputDirectory={libraries}", "-DincludeScope=runtime"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                absent(f"Apache Kafka {KAFKA} could not be fetched by Maven:\n{done.stdout[-500:]}")
    return libraries


class KafkaServer:
    """One broker (KRaft, one node) of our own; its folder is kept, so that it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> KafkaServer:
        java = need("java", "openjdk-17-jre-headless")
        libraries = kafka_libraries()
        settings = self._folder / "server.properties"
        command = [java, "-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        command += ["-cp", f"{self._folder}{os.pathsep}{libraries}/*"]
        if not settings.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            settings.write_text(self._settings())
            format_ = ["kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qk", "-c", str(settings)]
            subprocess.run([*command, *format_, "--standalone"], check=True, capture_output=True, timeout=120)
        with (self._folder / "server.log").open("ab") as out:
            self._process = subprocess.Popen([*command, "kafka.Kafka", str(settings)], stdout=out, stderr=out)
        wait_for(lambda: is_open(self.port), "kafka", self._process)
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _settings(self) -> str:
        controller = free_port()
        return "\n".join(
            f"{name}={value}"
            for name, value in {
                "process.roles": "broker,controller",
                "node.id": 1,
                "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
                "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
                "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
                "controller.listener.names": "CONTROLLER",
                "log.dirs": self._folder / "log",
                "offsets.topic.replication.factor": 1,
                "offsets.topic.num.partitions": 1,
                "transaction.state.log.replication.factor": 1,
                "transaction.state.log.min.isr": 1,
                "group.initial.rebalance.delay.ms": 0,
                "group.min.session.timeout.ms": 1000,
                "auto.create.topics.enable": "false",
                "num.network.threads": 2,
                "num.io.threads": 2,
                "log.cleaner.dedupe.buffer.size": 2 << 20,
            }.items()
        )
