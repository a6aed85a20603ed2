"""Real servers for the tests: started once a session on free loopback ports, stopped at its end (docs/testing.md).

A server that one already has is used where the environment names it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import redis

from tests.peers.programs import absent, cache_folder, free_port, is_open, need, one_at_a_time, wait_for


class RedisServer:
    """One redis-server of our own; it can be killed and started again on the same port and folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        program = need("redis-server", "redis-server")
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        command += ["--save", "", "--appendonly", "no", *self._options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(lambda: is_open(self.port), "redis-server", self.process)
        return self

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        """Let it hang, as a machine does that swaps; `resume` ends that."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


class RedisCluster:
    """A Redis Cluster of three nodes without replicas."""

    def __init__(self, folder: Path) -> None:
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]
        self.nodes = [RedisServer(folder / str(number), *options) for number in range(3)]
        self.url = self.nodes[0].url

    def start(self) -> RedisCluster:
        for number, node in enumerate(self.nodes):
            node.start()
            with node.client() as client:
                client.execute_command(
                    "CLUSTER", "ADDSLOTSRANGE", number * 5461, 16383 if number == 2 else number * 5461 + 5460
                )
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            with self.nodes[0].client() as client:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        for node in self.nodes:
            wait_for(lambda node=node: self._is_whole(node), "redis cluster", node.process)
        return self

    def _is_whole(self, node: RedisServer) -> bool:
        with node.client() as client:
            told = client.execute_command("CLUSTER", "INFO")
            text = told if isinstance(told, str) else told.decode()
            return "cluster_state:ok" in text and "cluster_known_nodes:3" in text

    def flush(self) -> None:
        for node in self.nodes:
            with node.client() as client:
                client.flushall()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


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


class Sentinel:
    """One sentinel that watches a master and promotes its replica at once."""

    service = "opportune"

    def __init__(self, folder: Path, master: RedisServer) -> None:
        self.port = free_port()
        self.url = f"redis+sentinel://127.0.0.1:{self.port}/{self.service}/0"
        self._folder = folder
        self._master = master
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Sentinel:
        program = need("redis-server", "redis-server")
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = self._folder / "sentinel.conf"
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self._folder}",
            f"sentinel monitor {self.service} 127.0.0.1 {self._master.port} 1",
            f"sentinel down-after-milliseconds {self.service} 1000",
            f"sentinel failover-timeout {self.service} 10000",
        ]
        settings.write_text("\n".join(lines) + "\n")
        self._process = subprocess.Popen([program, str(settings), "--sentinel"], stdout=subprocess.DEVNULL)
        wait_for(lambda: is_open(self.port), "sentinel", self._process)
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


_SWIFT = ("-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_SHIPPED = (  # bin/kafka-server-start.sh and bin/kafka-run-class.sh
    "-Xmx1G",
    "-Xms1G",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
)


class KafkaServer:
    """One broker (KRaft) of our own; its folder is kept, so that it can be killed and started again.

    voters  of a cluster: node id and controller port of each; None: one node alone
    swift   starts soon and takes little; else with the heap, collector, compiler and threads that Kafka ships with
    """

    def __init__(
        self, folder: Path, *, node: int = 1, voters: dict[int, int] | None = None, swift: bool = True
    ) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.node = node
        self._voters = voters
        self._swift = swift
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> KafkaServer:
        java = need("java", "openjdk-17-jre-headless")
        libraries = kafka_libraries()
        settings = self._folder / "server.properties"
        command = [java, *(_SWIFT if self._swift else _SHIPPED), "-cp", f"{self._folder}{os.pathsep}{libraries}/*"]
        if not settings.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            settings.write_text(self._settings())
            format_ = ["kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qk", "-c", str(settings)]
            alone = [] if self._voters else ["--standalone"]
            subprocess.run([*command, *format_, *alone], check=True, capture_output=True, timeout=120)
        with (self._folder / "server.log").open("ab") as out:
            self._process = subprocess.Popen([*command, "kafka.Kafka", str(settings)], stdout=out, stderr=out)
        return self

    def wait(self) -> KafkaServer:
        assert self._process is not None
        wait_for(lambda: is_open(self.port), "kafka", self._process)
        return self

    def start(self) -> KafkaServer:
        return self.launch().wait()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _settings(self) -> str:
        controller = self._voters[self.node] if self._voters else free_port()
        if self._voters:
            voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in self._voters.items())
            quorum = {"controller.quorum.voters": voters}
        else:
            quorum = {"controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}"}
        copies = min(3, len(self._voters or (1,)))
        return "\n".join(
            f"{name}={value}"
            for name, value in {
                "process.roles": "broker,controller",
                "node.id": self.node,
                **quorum,
                "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
                "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
                "controller.listener.names": "CONTROLLER",
                "log.dirs": self._folder / "log",
                "min.insync.replicas": max(1, copies - 1),
                "offsets.topic.replication.factor": copies,
                "offsets.topic.num.partitions": 1,
                "transaction.state.log.replication.factor": copies,
                "transaction.state.log.min.isr": 1,
                "group.initial.rebalance.delay.ms": 0,
                "group.min.session.timeout.ms": 1000,
                "broker.session.timeout.ms": 6000,
                "auto.create.topics.enable": "false",
                **({"num.network.threads": 2, "num.io.threads": 2} if self._swift else {}),
                "log.cleaner.dedupe.buffer.size": 2 << 20,
            }.items()
        )


class KafkaCluster:
    """Three brokers that are controllers too; any one can be killed."""

    def __init__(self, folder: Path) -> None:
        voters = {node: free_port() for node in (1, 2, 3)}
        self.nodes = {node: KafkaServer(folder / f"node-{node}", node=node, voters=voters) for node in voters}
        self.address = ",".join(one.address for one in self.nodes.values())

    def start(self) -> KafkaCluster:
        for one in self.nodes.values():
            one.launch()
        for one in self.nodes.values():
            one.wait()
        return self

    def kill(self) -> None:
        for one in self.nodes.values():
            one.kill()
