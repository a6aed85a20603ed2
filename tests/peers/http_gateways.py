"""Real gateways for the tests: Kannel, Prism with Twilio's description, a push service; on loopback, in own folders.

Debian packages are installed as `tests.peers.programs.need` says; npm packages go into a cache outside the tree.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.peers.programs import absent, cache_folder, free_port, is_open, need, one_at_a_time, wait_for

PRISM = "@stoplight/prism-cli@5.14.2"
PUSH_SERVER = "web-push-testing@1.2.2"
FAKESMSC = "/usr/lib/kannel/test/fakesmsc"


def npm_program(package: str, program: str) -> str:
    """Return the path of a program of an npm package."""
    return str(npm_folder(package) / "node_modules" / ".bin" / program)


def npm_folder(package: str) -> Path:
    """Return where a version of an npm package is installed, installing it into the cache where it is missing."""
    folder = cache_folder() / "npm" / package.replace("/", "-").replace("@", "_")
    with one_at_a_time():
        _install_npm(package, folder)
    return folder


def _install_npm(package: str, folder: Path) -> None:
    if not (folder / "package-lock.json").exists():
        if shutil.which("npm") is None:
            absent(f"npm is missing, so {package} cannot be installed: install Node.js 20 or later")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--silent"]
        command += ["--fetch-timeout", "20000", package]
        failure = ""
        for _ in range(3):  # a registry that stalls in the middle of a package answers the next request
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=150)
            except subprocess.TimeoutExpired:
                failure = "no answer within 150 s"
                continue
            if not done.returncode:
                return
            failure = done.stderr.strip()[-300:]
        absent(f"{package} could not be installed: {failure}")


@contextlib.contextmanager
def running(
    command: list[str], log: Path, port: int, what: str, **options: object
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; ready once its port is open."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, **options)  # type: ignore[call-overload]
    try:
        wait_for(lambda: is_open(port), f"{what} (see {log})", process)
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and what it started, all of it ours: it leads a session of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(5)
            return
        except subprocess.TimeoutExpired:
            continue


class Kannel:
    """bearerbox, smsbox and fakesmsc: an SMS centre that prints what it is sent."""

    LOGIN, PASSWORD = "opportune", "kannel-password"

    def __init__(self, folder: Path, callback: str) -> None:
        self._bearerbox, self._smsbox = need("bearerbox", "kannel"), need("smsbox", "kannel")
        self._fakesmsc = need(FAKESMSC, "kannel-extras")
        self.folder = folder
        self.sent = folder / "fakesmsc.log"
        self._admin, self._boxes, self._smsc, self._http = (free_port() for _ in range(4))
        self.url = f"http://127.0.0.1:{self._http}/cgi-bin/sendsms"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._centre: subprocess.Popen[bytes] | None = None
        (folder / "kannel.conf").write_text(
            f"""group = core
admin-port = {self._admin}
admin-password = admin
smsbox-port = {self._boxes}
box-allow-ip = "127.0.0.1"
log-level = 1
log-file = "{folder}/bearerbox.log"
dlr-storage = internal

group = smsc
smsc = fake
smsc-id = FAKE
port = {self._smsc}
connect-allow-ip = "127.0.0.1"

group = smsbox
bearerbox-host = 127.0.0.1
sendsms-port = {self._http}
log-level = 1
log-file = "{folder}/smsbox.log"

group = sendsms-user
username = {self.LOGIN}
password = {self.PASSWORD}
concatenation = true
max-messages = 10

group = sms-service
keyword = default
catch-all = true
max-messages = 0
get-url = "{callback}&from=%p&to=%P&text=%b&at=%T&id=%I"
"""
        )

    def start(self) -> None:
        config = str(self.folder / "kannel.conf")
        for program, port, what in ((self._bearerbox, self._boxes, "bearerbox"), (self._smsbox, self._http, "smsbox")):
            self._start([program, "-v", "4", config], what)
            wait_for(lambda port=port: is_open(port), f"{what} (see {self.folder})", self._processes[-1])  # type: ignore[misc]

    def attach(self, *messages: str, seconds_between: float = 0.2) -> None:
        """Connect a fakesmsc, which sends these messages ("from to text words") and keeps what it is sent.

        Kannel talks to one at a time: the one before goes.
        """
        if self._centre is not None:
            stop(self._centre)
            self._processes.remove(self._centre)
        command = [self._fakesmsc, "-H", "127.0.0.1", "-r", str(self._smsc), "-i", str(seconds_between)]
        count = ["-m", str(len(messages))] if messages else ["-m", "0"]
        self._start([*command, *count, *(messages or ("0 0 text none",))], "fakesmsc")
        self._centre = self._processes[-1]

    def wait_sent(self, count: int, timeout_s: float = 15.0) -> list[str]:
        """Return what the SMS centre was sent, once there are that many messages."""
        end_s = time.monotonic() + timeout_s
        while True:
            lines = [line for line in self._log_lines() if "Got message" in line]
            if len(lines) >= count:
                return lines
            assert time.monotonic() < end_s, f"{len(lines)} of {count} messages; see {self.sent}"
            time.sleep(0.05)

    @property
    def pids(self) -> list[int]:
        return [one.pid for one in self._processes]

    def stop(self) -> None:
        self._centre = None
        while self._processes:
            stop(self._processes.pop())

    def _start(self, command: list[str], name: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as out:
            self._processes.append(subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True))

    def _log_lines(self) -> list[str]:
        return self.sent.read_bytes().decode("utf-8", "replace").splitlines() if self.sent.exists() else []


@contextlib.contextmanager
def twilio_mock(folder: Path, description: Path) -> Iterator[str]:
    """Prism over Twilio's OpenAPI description: answers only what the description allows. Yields its address."""
    program = npm_program(PRISM, "prism")
    document = folder / "twilio.json"
    document.write_bytes(gzip.decompress(description.read_bytes()))
    port = free_port()
    command = [program, "mock", "--host", "127.0.0.1", "--port", str(port), "--errors", str(document)]
    with running(command, folder / "prism.log", port, "prism"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def push_server(folder: Path) -> Iterator[str]:
    """A push service that decrypts what it is sent, as a browser would. Yields its address."""
    program = npm_program(PUSH_SERVER, "web-push-testing")
    port = free_port()
    code = Path(program).resolve().parent.parent
    script = (
        f"const Server = require({str(code / 'server.js')!r});"
        f"const {{PushApiModel}} = require({str(code / 'PushApiModel.js')!r});"
        f"new Server(new PushApiModel(), {port}).startServer()"
    )
    command = [shutil.which("node") or "node", "-e", script]
    with running(command, folder / "push.log", port, "web-push-testing"):
        yield f"http://127.0.0.1:{port}"


async def body_of(receive: Any) -> bytes:
    """Read the whole body of a request to an ASGI application."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body
