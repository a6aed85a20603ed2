"""The Java gateway SMSGate as the operator's side of SGIP, CMPP and SMGP, in a process of its own on loopback.

Its jars come from Maven Central by Maven, once, into the user's cache folder; `Peer.java` is compiled beside them.
It needs Java 17 and Maven: OPPORTUNE_INSTALL=1 installs the Debian packages; without them tests are skipped, or fail
under OPPORTUNE_REQUIRE=all.
"""

from __future__ import annotations

import hashlib
import queue
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.peers.invariants import Handsets
from tests.peers.programs import absent, cache_folder, need, one_at_a_time

HERE = Path(__file__).parent
PROTOCOLS = ("sgip", "cmpp30", "cmpp20", "smgp")
LOGIN, PASSWORD = "901234", "s3cret"


@dataclass(frozen=True)
class Submitted:
    """What the peer says of one message: its number, text and the results it gave to the parts."""

    number: str
    text: str
    results: tuple[str, ...]


class SmsGate:
    """One running peer. `lines` is what it said since it was last asked."""

    def __init__(self, classpath: str, protocol: str, port: int, folder: Path, *, single: bool = False) -> None:
        self._command = ["java", "-Xmx256m", "-XX:+UseSerialGC", f"-Dsingle={str(single).lower()}", "-cp", classpath]
        self._command += ["Peer", protocol, str(port), LOGIN, PASSWORD]
        self._folder = folder
        self.protocol = protocol
        self.port = port
        self._orders: list[str] = []
        self.handsets = Handsets()
        self.start()

    def start(self) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            text=True,
        )
        threading.Thread(target=self._read, args=(self.process, self._lines, self.handsets), daemon=True).start()
        self.wait_for("ready", 60)
        for order in self._orders:
            self._write(order)

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str], handsets: Handsets) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            words = line.split()
            # A part that is not answered was taken all the same.
            if words[0] == "submit" and set(words[4].strip(",").split(",")) <= {"0", "-"}:
                handsets.got((words[2], words[3]))
            lines.put(line.rstrip("\n"))
        process.stdout.close()

    def tell(self, order: str, *, keep: bool = True) -> None:
        """Give an order; one that is kept is given again after a restart."""
        if keep:
            self._orders.append(order)
        self._write(order)

    def _write(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()

    def wait_for(self, begin: str, timeout_s: float = 20) -> str:
        """Return the next line that begins so; lines before it are dropped."""
        until_s = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, until_s - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"the peer did not say {begin!r} within {timeout_s} s") from None
            if line.startswith(begin):
                return line

    def submits(self) -> list[Submitted]:
        """Take what was submitted so far."""
        found = []
        while True:
            try:
                words = self._lines.get_nowait().split(" ")
            except queue.Empty:
                return found
            if words[0] == "submit":
                text = bytes.fromhex(words[3][2:]).decode()
                found.append(Submitted(words[2], text, tuple(words[4].strip(",").split(","))))

    def count(self) -> tuple[int, int, int]:
        """Return how many parts came, how many were accepted, how many answers to its own commands came."""
        self._write("count")
        _, *numbers = self.wait_for("received").split(" ")
        came, accepted, acknowledged = map(int, numbers)
        return came, accepted, acknowledged

    def most_unanswered(self) -> int:
        """Return how many parts were without an answer at once, at the most (F18)."""
        self._write("most")
        return int(self.wait_for("most").split(" ")[1])

    def message(self, number: str, text: str) -> None:
        """Let a user send a message."""
        self.tell(f"mo {number} {text.encode().hex()}", keep=False)

    def freeze(self) -> None:
        """Leave every connection open and answer nothing: a link dead without FIN (F19)."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


def classpath() -> str:
    """Return the class path of the compiled peer, built once; skip or fail where Java or Maven is missing."""
    need("javac", "openjdk-17-jdk-headless")
    need("mvn", "maven")
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in ("pom.xml", "Peer.java"))).hexdigest()[:12]
    folder = cache_folder() / "peers" / f"smsgate-{digest}"
    with one_at_a_time():
        if not (folder / "complete").exists():
            _build(folder)
    return f"{folder / 'classes'}:{folder / 'jars'}/*"


def _build(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    classes, jars = folder / "classes", folder / "jars"
    classes.mkdir(parents=True)
    fetch = [
        "mvn",
        "-q",
        "-B",
        "-f",
        str(HERE / "pom.xml"),
        "dependency:copy-dependencies",
        f"-DoutputDirectory={jars}",
    ]
    _run(fetch, folder)
    compile_ = [
        "javac",
        "-nowarn",
        "-encoding",
        "UTF-8",
        "-cp",
        f"{jars}/*",
        "-d",
        str(classes),
        str(HERE / "Peer.java"),
    ]
    _run(compile_, folder)
    (folder / "complete").touch()


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        absent(f"{command[0]} failed: {(done.stdout + done.stderr)[-800:]}")
