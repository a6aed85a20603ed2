"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.servers import KafkaServer, RedisCluster, RedisServer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long suite too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # What waits longest comes first, so that the processes end together.
    items.sort(key=lambda item: "integration" not in item.path.parts)
    if config.getoption("--long"):
        return
    for item in items:
        if "long" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="long suite: make test-long"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real traces and expected answers; without it tests are skipped loudly, or fail where required."""
    if not SHARED.is_dir():
        absent = "real data absent: put it beside the project as ../shared/data (see docs/testing.md)"
        if os.environ.get("OPPORTUNE_REQUIRE") == "all":
            pytest.fail(absent)
        pytest.skip(absent)
    return SHARED


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Redis: OPPORTUNE_REDIS where set, else one of our own."""
    given = os.environ.get("OPPORTUNE_REDIS")
    if given:
        yield given
        return
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.kill()


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three nodes, each with a third of the slots."""
    cluster = RedisCluster(tmp_path_factory.mktemp("redis-cluster")).start()
    yield cluster
    cluster.kill()


@pytest.fixture
def redis_cluster_url(redis_cluster: RedisCluster) -> str:
    redis_cluster.flush()
    return redis_cluster.url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """An address whose database is empty."""
    client = redis.Redis.from_url(redis_server)
    client.flushdb()
    client.close()
    return redis_server


@pytest.fixture(scope="session")
def kafka_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Apache Kafka: OPPORTUNE_KAFKA where set, else a broker of our own."""
    given = os.environ.get("OPPORTUNE_KAFKA")
    if given:
        yield given
        return
    server = KafkaServer(tmp_path_factory.mktemp("kafka"))
    server.start()
    yield server.address
    server.kill()
