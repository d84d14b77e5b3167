"""Releases of the agent at the server: taken in, signed with a key of their own, rolled out beside models, their reports applied."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bowerbird_server.catalogue import Row, fleet, overview, rollouts
from bowerbird_server.cli.app import app
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault, NotFound
from bowerbird_server.releases import agent_releases
from bowerbird_server.releases.agent_archive import pack
from bowerbird_server.releases.registry import publish, register_model
from bowerbird_server.releases.repository import AwaitingSignature
from bowerbird_server.releases.repository_files import answer
from bowerbird_server.site import Site
from bowerbird_testing.agent_releases import make_release
from bowerbird_testing.tiny_yolo import write_tiny_yolo
from bowerbird_wire.messages import BlockRequest, Report


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def archive_of(tmp_path: Path, version: str) -> Path:
    (tmp_path / "archives").mkdir(exist_ok=True)
    return pack(make_release(tmp_path / f"release-{version}", version), tmp_path / "archives")


@pytest.fixture
def site(data: Path) -> Iterator[Site]:
    (data / "bowerbird.toml").write_text('[signing]\nmode = "automatic"\n')
    with Site.open(data) as opened:
        fleet.add_device(opened.catalogue, "cam-01", "site", "test")
        yield opened


def execution(site: Site, rollout: str) -> Row:
    (row,) = rollouts.executions(site.catalogue, rollout)
    return row


def rolled_out(site: Site, tmp_path: Path, version: str) -> tuple[str, str]:
    """Rollout and release digest of a version that was offered to the device."""
    found = agent_releases.import_release(site, archive_of(tmp_path, version), "test")
    counter = agent_releases.publish_release(site, found.digest, "test")
    rollout = rollouts.start_rollout(site.catalogue, found.digest, counter, ["cam-01"], "test", agent_version=version)
    rollouts.advance(site.catalogue)
    return rollout, found.digest


def test_a_release_is_taken_in_once_and_found_by_version_and_by_digest(site: Site, tmp_path: Path) -> None:
    archive = archive_of(tmp_path, "0.3.0")
    one, two = (agent_releases.import_release(site, archive, "test") for _ in range(2))
    assert one == two
    assert [each.digest for each in agent_releases.list_releases(site)] == [one.digest]
    assert agent_releases.find(site, "0.3.0") == agent_releases.find(site, one.digest[:8]) == one
    with pytest.raises(NotFound, match="agents list"):
        agent_releases.find(site, "9.9.9")
    assert [path for path in site.folder.agents.iterdir() if path.name.startswith(".")] == []


def test_two_releases_of_one_version_are_told_apart_by_digest(site: Site, tmp_path: Path) -> None:
    agent_releases.import_release(site, archive_of(tmp_path, "0.3.0"), "test")
    other = pack(make_release(tmp_path / "other", "0.3.0", salt="other"), tmp_path)
    agent_releases.import_release(site, other, "test")
    with pytest.raises(BadInput, match="name one by its digest"):
        agent_releases.find(site, "0.3.0")


def test_a_release_whose_files_were_changed_at_the_server_is_not_published(site: Site, tmp_path: Path) -> None:
    found = agent_releases.import_release(site, archive_of(tmp_path, "0.3.0"), "test")
    (wheel,) = (site.folder.agents / found.digest).glob("needed-*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    with pytest.raises(BadInput, match="is not the file"):
        agent_releases.publish_release(site, found.digest, "test")


def test_devices_are_given_every_file_of_a_published_release_and_nothing_beside_them(site: Site, tmp_path: Path) -> None:
    found = agent_releases.import_release(site, archive_of(tmp_path, "0.3.0"), "test")
    agent_releases.publish_release(site, found.digest, "test")
    targets = site.folder.repository / "targets"
    paths = [str(path.relative_to(site.folder.repository)) for path in (targets / "agents").rglob("*") if path.is_file()]
    assert len(paths) == 5
    for path in paths:
        (block,) = answer(site.folder.repository, BlockRequest(path))
        assert block.error == ""
    for path in ("targets/agents/../../keys/agents.pem", f"targets/agents/{found.digest}/x.whl", "metadata/1.agents.json/.."):
        (block,) = answer(site.folder.repository, BlockRequest(path))
        assert block.error == "not_found"


def test_a_device_may_hold_one_job_of_each_kind_and_each_supersedes_its_own_only(site: Site, tmp_path: Path) -> None:
    model = register_model(site, write_tiny_yolo(tmp_path / "m.onnx"), weights=None, origin="imported", actor="test")["digest"]
    of_model = rollouts.start_rollout(site.catalogue, model, publish(site, model, "test"), ["cam-01"], "test")
    first, _ = rolled_out(site, tmp_path, "0.3.0")
    jobs = {wanted.is_agent: wanted.job for wanted in rollouts.jobs(site.catalogue)}
    assert jobs[False].model_digest == model
    assert jobs[True].extra == {"of": "agent"}
    second, digest = rolled_out(site, tmp_path, "0.4.0")
    states = {row["id"]: row["state"] for row in rollouts.list_rollouts(site.catalogue)}
    assert states == {of_model: "running", first: "aborted", second: "running"}
    jobs = {wanted.is_agent: wanted.job for wanted in rollouts.jobs(site.catalogue)}
    assert (jobs[True].model_digest, jobs[False].model_digest) == (digest, model)


def test_a_report_of_the_agent_ends_its_rollout_and_a_device_that_reverts_counts_as_failed(site: Site, tmp_path: Path) -> None:
    rollout, digest = rolled_out(site, tmp_path, "0.3.0")
    job = execution(site, rollout)["job"]
    report = Report(job, "committed", digest, model_digest=digest, extra={"of": "agent"})
    assert rollouts.record_report(site.catalogue, "cam-01", report)
    assert execution(site, rollout)["state"] == "succeeded"
    # The model's heartbeat says nothing about the agent.
    assert not rollouts.record_running(site.catalogue, "cam-01", "c" * 64)
    assert not rollouts.record_agent_version(site.catalogue, "cam-01", "0.3.0")
    assert rollouts.record_agent_version(site.catalogue, "cam-01", "0.2.0")
    assert (execution(site, rollout)["state"], execution(site, rollout)["code"]) == ("failed", "reverted")


def test_a_device_that_says_committed_and_runs_something_else_has_failed(site: Site, tmp_path: Path) -> None:
    rollout, digest = rolled_out(site, tmp_path, "0.3.0")
    job = execution(site, rollout)["job"]
    rollouts.record_report(site.catalogue, "cam-01", Report(job, "committed", "d" * 64, model_digest=digest))
    assert (execution(site, rollout)["state"], execution(site, rollout)["code"]) == ("failed", "wrong_digest")


def test_a_rollout_of_the_agent_is_shown_as_one(site: Site, tmp_path: Path) -> None:
    rolled_out(site, tmp_path, "0.3.0")
    (row,) = overview.rollouts(site.catalogue)
    assert (row["model"], row["agent_version"]) == (None, "0.3.0")


def test_where_a_person_signs_only_the_agents_key_will_do(data: Path, tmp_path: Path) -> None:
    with Site.open(data) as site:
        found = agent_releases.import_release(site, archive_of(tmp_path, "0.3.0"), "test")
        with pytest.raises(AwaitingSignature, match="bowerbird agents sign"):
            agent_releases.publish_release(site, found.digest, "test")
        offline = site.folder.keys / "offline"
        assert agent_releases.find(site, "0.3.0").awaits == 1
        with pytest.raises((Conflict, EnvironmentFault), match="not signed by the agents key"):
            agent_releases.finish_signing(site, offline / "models.pem", "test")
        assert agent_releases.find(site, "0.3.0").release is None
        assert agent_releases.finish_signing(site, offline / "agents.pem", "test") == {found.digest: 1}
        assert agent_releases.find(site, "0.3.0").release == 1


def test_the_commands_take_in_list_publish_and_roll_out(site: Site, data: Path, tmp_path: Path) -> None:
    archive = archive_of(tmp_path, "0.3.0")
    site.close()
    runner = CliRunner()

    def command(*words: object) -> str:
        done = runner.invoke(app, [*map(str, words), "--data", str(data)])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    assert "agent 0.3.0" in command("agents", "import", archive)
    assert "is release 1" in command("agents", "publish", "0.3.0")
    (row,) = json.loads(command("agents", "list", "--json"))
    assert (row["version"], row["release"], row["state"]) == ("0.3.0", 1, "published")
    assert "agent 0.3.0, release 1, 1 devices" in command("rollout", "start", "--agent", "0.3.0")
    assert "agent 0.3.0" in command("rollout", "list")
    assert "is release 2" in command("agents", "publish", "0.3.0", "--again")
