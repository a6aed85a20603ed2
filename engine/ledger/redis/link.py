"""One connection to Redis that runs the ledger's scripts: reconnects, reloads, repeats, and gives up in time.

Every script may be repeated after a lost reply: it answers the same again and writes nothing twice (FAULTS F7).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import redis
import structlog
from redis.connection import ConnectionPool
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    NoScriptError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from engine.clock import monotonic_s
from engine.errors import SettingsError, StoreUnavailable
from engine.ledger.dispatch import FOLLOWS
from engine.ledger.redis.address import read_address

log = structlog.get_logger("opportune.ledger")

_FOLDER = Path(__file__).parent / "lua"
_NEEDS = dict.fromkeys(("claim", "heal", "reserve", "restock", "retake", "settle", "supply", "take"), ("stock",))
"""What stands before a script beside lua/shared.lua."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


class Meanwhile(Protocol):
    """What else a thread has to do (engine.runtime.cluster.lanes); both return False where there is nothing."""

    def reply(self, socket: Any) -> bool:
        """Do it until there is something to read."""

    def give_way(self) -> bool:
        """Do some of it."""


class NothingElse:
    """A thread that has one thing to do."""

    def reply(self, socket: Any) -> bool:
        return False

    def give_way(self) -> bool:
        return False


NOTHING_ELSE = NothingElse()


class RedisLink:
    """Run scripts and commands over one connection, under a lock.

    patience_s  how long a call waits for a Redis that cannot answer before it raises StoreUnavailable
    is_stopped  asked while waiting: True ends the wait at once
    run_id      of the server that the connection reaches; another one may be a replica that knows less (F8)
    home        the hash tag of all keys; in a Redis Cluster the connection goes to the node that has its slot
    meanwhile   what else there is to do while Redis works
    """

    def __init__(
        self,
        url: str,
        *,
        patience_s: float = 5.0,
        timeout_s: float = 5.0,
        is_stopped: Callable[[], bool] = lambda: False,
        home: str = "{default}",
        meanwhile: Meanwhile = NOTHING_ELSE,
    ) -> None:
        self.patience_s = patience_s
        self.run_id = ""
        self._address = read_address(url)
        self._where = self._address.where
        self._timeout_s = timeout_s
        self._is_stopped = is_stopped
        if not self._address.sentinels:
            self._pool(url)
        self._home = home.encode()
        self._meanwhile = meanwhile
        self._nodes: list[tuple[str, int]] = []
        self._connection: Any = None
        self._lock = threading.RLock()

    def script(self, name: str, keys: Sequence[bytes], arguments: Callable[[], Sequence[bytes | str | int]]) -> Any:
        """Run a script; `arguments` is asked anew at each try, because a reconnect may change the run id.

        Raises StoreUnavailable once patience ends, SettingsError where this Redis can never serve.
        """
        return self.scripts(name, [(keys, arguments)])[0]

    def scripts(
        self,
        name: str,
        calls: Iterable[tuple[Sequence[bytes], Callable[[], Sequence[bytes | str | int]]]],
        read: Callable[[int, Any], Any] = lambda _, answer: answer,
    ) -> list[Any]:
        """Run a script several times in order; calls are made, and answers read, while Redis works on others.

        read  makes of each call's number and answer what is returned; what is repeated is read again
        """
        text, sha = _script(name)
        made: list[tuple[Sequence[bytes], Callable[[], Sequence[bytes | str | int]]]] = []
        coming = iter(calls)

        def run(connection: Any) -> list[Any]:
            for keys, arguments in [*made]:
                connection.send_packed_command([_call(sha, keys, arguments())])
            for keys, arguments in coming:
                made.append((keys, arguments))
                connection.send_packed_command([_call(sha, keys, arguments())])
            self._meanwhile.reply(connection._sock)
            answers = []
            unknown = False
            for row in range(len(made)):
                try:
                    answers.append(read(row, connection.read_response(disable_decoding=True)))
                except NoScriptError:
                    unknown = True
            if unknown:
                _ask(connection, _pack((b"SCRIPT", b"LOAD", text)))
                return run(connection)
            return answers

        answers: list[Any] = self._try(run)
        return answers

    def command(self, *parts: bytes | str | int) -> Any:
        """Run a command that may be repeated."""
        return self._try(lambda connection: _ask(connection, _pack([_bytes(part) for part in parts])))

    def scan(self, pattern: bytes) -> list[bytes]:
        """List the keys of a pattern; walks the whole store."""
        found: set[bytes] = set()
        cursor = b"0"
        while True:
            cursor, keys = self.command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            found.update(keys)
            if cursor == b"0":
                return sorted(found)

    def close(self) -> None:
        with self._lock:
            self._drop()

    # --- inside --------------------------------------------------------------------------------------------------

    def _try(self, run: Callable[[Any], Any]) -> Any:
        give_up_s = monotonic_s() + self.patience_s
        pause_s = _FIRST_PAUSE_S
        with self._lock:
            while True:
                try:
                    if self._connection is None:
                        self._connect()
                    return run(self._connection)
                except AuthenticationError:
                    self._drop()
                    raise SettingsError(f"{self._where} refuses the password") from None
                except (RedisError, OSError) as error:
                    if isinstance(error, ResponseError) and not _may_pass(error):
                        raise
                    self._drop()
                    if monotonic_s() >= give_up_s or self._is_stopped():
                        raise StoreUnavailable(f"{self._where} does not answer ({_reason(error)})") from None
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _connect(self) -> None:
        self._connection, facts = self._reach()
        if facts.get("cluster_enabled") == "1":
            facts = self._go_home(facts)
        self.run_id = check_server(facts, self._where, self._setting)

    def _reach(self) -> tuple[Any, dict[str, str]]:
        """Connect to the address that was given, or to any node of the cluster it belonged to."""
        try:
            return self._open()
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            for host, port in self._nodes:
                with suppress(redis.ConnectionError, redis.TimeoutError, OSError):
                    return self._open(host, port)
            raise

    def _open(self, host: str | None = None, port: int | None = None) -> tuple[Any, dict[str, str]]:
        pool = self._pool(self._address.current())
        where = {"host": host, "port": port} if host else {}
        connection = pool.connection_class(**{**pool.connection_kwargs, **where})
        connection.connect()
        return connection, _facts(_ask(connection, _pack((b"INFO", b"everything"))))

    def _go_home(self, facts: dict[str, str]) -> dict[str, str]:
        """Move the connection to the node that has the slot of our keys (Redis Cluster)."""
        slot = _ask(self._connection, _pack((b"CLUSTER", b"KEYSLOT", self._home)))
        home: tuple[str, int] | None = None
        nodes = []
        for first, last, *members in _ask(self._connection, _pack((b"CLUSTER", b"SLOTS"))):
            found = [(member[0].decode() or str(self._connection.host), int(member[1])) for member in members]
            nodes += found
            if first <= slot <= last:
                home = found[0]
        self._nodes = list(dict.fromkeys(nodes))
        if home is None:
            raise redis.ConnectionError("no node of the cluster has the slot of the ledger's keys")
        if facts.get("tcp_port") != str(home[1]) or self._connection.host != home[0]:
            self._drop()
            self._connection, facts = self._open(*home)
        return facts

    def _pool(self, url: str) -> ConnectionPool:
        """Read an address as redis-py does; SettingsError where it is not one."""
        try:
            return ConnectionPool.from_url(
                url, socket_timeout=self._timeout_s, socket_connect_timeout=min(self._timeout_s, 2.0), protocol=2
            )
        except ValueError as error:
            raise SettingsError(f"redis address {self._where!r} is not one: {error}") from None

    def _setting(self, name: str) -> str | None:
        try:
            answer = _ask(self._connection, _pack((b"CONFIG", b"GET", name.encode())))
        except ResponseError:
            return None
        return answer[1].decode() if len(answer) == 2 else None

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()


def check_server(facts: dict[str, str], where: str, setting: Callable[[str], str | None]) -> str:
    """Refuse a Redis that may lose caps by itself, advise on what could be safer, and return its run id (F8, F9)."""
    policy = facts.get("maxmemory_policy") or setting("maxmemory-policy")
    if policy not in (None, "noeviction"):
        raise SettingsError(
            f"{where} has maxmemory-policy {policy}, which may drop caps: set it to noeviction (CONFIG SET "
            "maxmemory-policy noeviction, and in redis.conf)"
        )
    if facts.get("role") != "master":
        raise redis.ConnectionError("it is a replica, which takes no writes")
    replicas = int(facts.get("connected_slaves", 0))
    if replicas and setting("min-replicas-to-write") in ("0", None):
        log.warning(
            "a failover may lose the last writes; set min-replicas-to-write 1 and min-replicas-max-lag 1",
            redis=where,
            replicas=replicas,
        )
    return facts["run_id"]


@cache
def _script(name: str) -> tuple[bytes, bytes]:
    """Return a script's text and hash."""
    rows = []
    for before, after in FOLLOWS.items():
        names = ", ".join(f"{state.value} = true" for state in sorted(after))
        rows.append(f"  ['{before.value if before else ''}'] = {{{names}}},")
    table = "local FOLLOWS = {\n" + "\n".join(rows) + "\n}\n"
    shared = "".join((_FOLDER / f"{part}.lua").read_text() for part in ("shared", *_NEEDS.get(name, ())))
    text = table + shared + (_FOLDER / f"{name}.lua").read_text()
    return text.encode(), hashlib.sha1(text.encode()).hexdigest().encode()


def _call(sha: bytes, keys: Sequence[bytes], arguments: Sequence[bytes | str | int]) -> bytes:
    return _pack((b"EVALSHA", sha, b"%d" % len(keys), *keys, *map(_bytes, arguments)))


def _ask(connection: Any, command: bytes) -> Any:
    connection.send_packed_command([command])
    return connection.read_response(disable_decoding=True)


def _pack(parts: Sequence[bytes]) -> bytes:
    """Write one command; redis-py's own packer costs ten times as much for the hundreds of keys of a batch."""
    head = b"*%d\r\n" % len(parts)
    return head + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


def _bytes(value: bytes | str | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _may_pass(error: ResponseError) -> bool:
    """Say whether an error answer may end by itself: full, loading, a replica, a disk that cannot be written."""
    text = str(error)
    return (
        isinstance(error, redis.ReadOnlyError | redis.BusyLoadingError | AskError | ClusterDownError | TryAgainError)
        or text.startswith(
            (
                "OOM",
                "MISCONF",
                "LOADING",
                "READONLY",
                "NOREPLICAS",
                "MASTERDOWN",
                "CLUSTERDOWN",
                "TRYAGAIN",
                "MOVED",
                "ASK",
                "command not allowed when used memory",
            )
        )
        or "OOM" in text
        or "READONLY" in text
    )


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0][:200].rstrip(".") or type(error).__name__


def _facts(text: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.decode(errors="replace").splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}
