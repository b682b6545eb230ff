"""What ``configs/`` offers for running a server on one machine: parsed, and held against what it speaks of."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # Prefect brings it; it ships no types
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import Settings

from flows.worker import COMMAND, FLOWS_AT_ONCE

HOUSE = Path(__file__).parent.parent
CONFIGS = HOUSE / "configs"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONFIGS / "compose.yaml").read_text())
    return found


def prefect_variables() -> set[str]:
    """Every environment variable that Prefect reads, by its settings' aliases."""
    found: set[str] = set()

    def walk(schema: Any) -> None:
        if isinstance(schema, dict):
            found.update(schema.get("supported_environment_variables", []))
            for value in schema.values():
                walk(value)
        elif isinstance(schema, list):
            for value in schema:
                walk(value)

    walk(Settings.model_json_schema())
    return found


def read_variables(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_compose_is_whole(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"database", "server", "deploy", "worker"}
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        assert set(service["networks"]) <= set(compose["networks"])
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(compose["volumes"])
        assert ("build" in service) == (service["image"] == "heatpipe")


def test_compose_builds_from_the_checkout(compose: dict[str, Any]) -> None:
    build = compose["services"]["worker"]["build"]
    context = (CONFIGS / build["context"]).resolve()
    assert context == HOUSE
    copied = re.findall(r"^COPY (.+) \S+$", (context / build["dockerfile"]).read_text(), re.MULTILINE)
    for name in " ".join(copied).split():
        assert (HOUSE / name).exists(), name
    wheel = tomllib.loads((HOUSE / "pyproject.toml").read_text())
    assert wheel["project"]["readme"] in " ".join(copied).split()


def test_compose_is_reached_from_this_machine_only_and_holds_no_key(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:4200:4200"]
    assert compose["networks"]["inside"]["internal"]
    assert compose["services"]["database"]["networks"] == ["inside"]
    for path in (CONFIGS / "compose.yaml", *(CONFIGS / "systemd").iterdir()):
        assert "KIYOTAKA" not in path.read_text(), path
    assert "EnvironmentFile=/etc/heatpipe/key.env" in (CONFIGS / "systemd" / "heatpipe-worker.service").read_text()
    assert compose["services"]["worker"]["env_file"] == ["/etc/heatpipe/key.env"]


def test_every_variable_is_one_that_somebody_reads(compose: dict[str, Any]) -> None:
    named = {name for file in (CONFIGS / "systemd").glob("*.env") for name in read_variables(file)}
    for service in compose["services"].values():
        named |= set(service.get("environment", {}))
    ours = {"HEATPIPE_DATA", "DO_NOT_TRACK", "POSTGRES_USER", "POSTGRES_DB"}
    assert named - ours - {"POSTGRES_HOST_AUTH_METHOD"} <= prefect_variables()


def test_the_units_write_into_their_own_folder() -> None:
    """All else is read-only to them; Prefect's server would write its page into the checkout."""
    for name in ("server", "worker"):
        variables = read_variables(CONFIGS / "systemd" / f"{name}.env")
        written = [value for value in variables.values() if value.startswith("/")]
        assert written
        assert all(value.startswith("/var/lib/heatpipe/") for value in written)
        assert "StateDirectory=heatpipe\n" in (CONFIGS / "systemd" / f"heatpipe-{name}.service").read_text()
    assert "PREFECT_SERVER_UI_STATIC_DIRECTORY" in read_variables(CONFIGS / "systemd" / "server.env")


def test_the_page_that_forgets_the_coins_of_a_schedule_is_not_the_first_one_shown(compose: dict[str, Any]) -> None:
    assert read_variables(CONFIGS / "systemd" / "server.env")["PREFECT_SERVER_UI_V2_ENABLED"] == "false"
    assert compose["services"]["server"]["environment"]["PREFECT_SERVER_UI_V2_ENABLED"] == "false"


def test_the_worker_gives_the_signs_of_life_that_the_automation_waits_for(compose: dict[str, Any]) -> None:
    automation = AutomationCore.model_validate(yaml.safe_load((CONFIGS / "crashed.yaml").read_text()))
    beats = [
        read_variables(CONFIGS / "systemd" / "worker.env")["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"],
        compose["services"]["worker"]["environment"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"],
    ]
    assert beats == ["30", "30"]
    assert automation.enabled
    assert automation.trigger.model_dump()["within"].total_seconds() == 3 * 30


def test_the_worker_starts_no_more_flows_at_once_than_the_docs_say() -> None:
    assert COMMAND[-2:] == ("--limit", str(FLOWS_AT_ONCE))
    assert FLOWS_AT_ONCE == 5
    assert "The worker runs five flows at once." in (HOUSE / "docs" / "server.md").read_text()


def test_the_pool_is_the_one_of_the_deployments(compose: dict[str, Any]) -> None:
    deployments = yaml.safe_load((HOUSE / "prefect.yaml").read_text())["deployments"]
    [pool] = {deployment["work_pool"]["name"] for deployment in deployments}
    assert f"--pool {pool} " in " ".join(COMMAND)
    assert f"work-pool create {pool} " in compose["services"]["deploy"]["command"][-1]
