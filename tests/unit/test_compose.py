"""compose.yaml says what docs/cluster.md promises: pinned images, health checks, commands and settings that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from engine.cli import cluster, serve
from engine.settings import ClusterSettings, Settings
from tests.servers import KAFKA

ROOT = Path(__file__).resolve().parents[2]
OURS = {"content", "worker", "dispatch", "serve"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    told: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return told


def test_it_starts_kafka_redis_and_every_process_of_ours(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"kafka", "redis", *OURS}
    known = {"build", "image", "restart", "environment", "volumes", "stop_grace_period", "command", "healthcheck"}
    for name, service in compose["services"].items():
        assert set(service) <= known | {"depends_on", "ports"}, name


def test_images_are_pinned_by_version_and_kafkas_is_the_one_that_is_tested(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+", service["image"]), name
    assert compose["services"]["kafka"]["image"].endswith(f":{KAFKA}")
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert {compose["services"][name]["image"] for name in OURS} == {f"opportune:{version[1]}"}


def test_every_service_that_stays_is_watched(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["healthcheck"].get("disable", False) == (name == "content")
        assert name == "content" or service["healthcheck"]["test"][0] == "CMD"


def test_what_others_wait_for_exists_and_can_come_true(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        for other, on in service.get("depends_on", {}).items():
            ends = "service_completed_successfully" if other == "content" else "service_healthy"
            assert (on["condition"], other in services) == (ends, True)


def test_commands_and_options_exist(compose: dict[str, Any]) -> None:
    every = typer.Typer()
    for group in (serve, cluster):
        group.register(every)
    root = typer.main.get_command(every)
    for name in OURS:
        program, *words = compose["services"][name]["command"]
        assert program == "opportune"
        command: Any = root
        for word in words:
            if hasattr(command, "commands") and word in command.commands:
                command = command.commands[word]
            elif word.startswith("--"):
                assert any(word in parameter.opts for parameter in command.params), f"{name}: {word}"
            else:
                assert any(parameter.param_type_name == "argument" for parameter in command.params), f"{name}: {word}"


def test_settings_exist_and_are_valid(compose: dict[str, Any]) -> None:
    cluster: dict[str, Any] = {}
    for name in OURS:
        for key, value in compose["services"][name]["environment"].items():
            role = key.removeprefix("OPPORTUNE_").lower()
            if role.startswith("cluster__"):
                assert role.removeprefix("cluster__") in ClusterSettings.model_fields
                cluster[role.removeprefix("cluster__")] = value
            else:
                assert role in Settings.model_fields
    read = ClusterSettings.model_validate(json.loads(json.dumps(cluster)))
    assert (read.kafka, read.redis, read.partitions) == ("kafka:9092", "redis://redis:6379/0", 16)


def test_volumes_are_declared_and_nothing_is_open_to_the_world(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (ROOT / source).is_dir(), volume
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
    assert "noeviction" in compose["services"]["redis"]["command"]
