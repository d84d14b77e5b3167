"""An update of the agent with real TUF metadata up to the hand-over: what is taken, what is refused, what never happens at once.

The installation itself is that of a release of two handmade wheels; the new process is another runner that says it is that version.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from bowerbird_agent.updates.agent_update import AgentUpdate, Machine
from bowerbird_agent.updates.agent_versions import AgentVersions
from bowerbird_agent.updates.updater import State, Subject
from bowerbird_models.agent_release import LOCK, ReleaseOnDisk
from bowerbird_models.manifest import Probation
from bowerbird_models.package import build_package
from bowerbird_testing.agent_releases import CHECK_FAILS, describe, lock_of, make_release, write_sources, write_wheel
from bowerbird_testing.tiny_yolo import write_tiny_yolo
from bowerbird_testing.update_device import UpdateDevice
from bowerbird_testing.update_server import UpdateServer
from bowerbird_wire.messages import Job

THIS = Machine(system_site_packages=False)


class AgentDevice(UpdateDevice):
    """One process of a device that can update its agent, as the version of the digest `running`."""

    def __init__(self, state: Path, server: UpdateServer, running: str = "", **arguments: Any) -> None:
        home = state / "agent"
        prefix = home / "versions" / running if running else state / "base"
        self.versions = AgentVersions(home, prefix=prefix)
        self.restart_asked = threading.Event()
        options = {
            "launched": True, "machine": THIS, "probation": Probation(0, 20.0, 20.0), "config": None, **arguments.pop("agent", {}),
        }  # fmt: skip
        update = AgentUpdate(self.versions, state, restart=self.restart_asked.set, **options)
        super().__init__(state, server.root, server.send, agent=update, **arguments)
        server.connect(self.runner.block)


@pytest.fixture
def server() -> UpdateServer:
    return UpdateServer()


@pytest.fixture
def release(tmp_path: Path) -> ReleaseOnDisk:
    return make_release(tmp_path / "release")


def refused(server: UpdateServer, state: Path, job: Job, subject: Subject = Subject.AGENT, **arguments: Any) -> str:
    """The code with which a job is refused; nothing was installed."""
    with AgentDevice(state, server, **arguments) as device:
        device.runner.job(job, subject)
        report = server.wait_for("refused", job_id=job.job_id, timeout_s=180)
    assert device.versions.current == ""
    assert not device.restart_asked.is_set()
    return report.code


def install(server: UpdateServer, state: Path, job: Job) -> None:
    """As the installed version: up to the switch and the wish to be started again."""
    with AgentDevice(state, server) as device:
        device.runner.job(job, Subject.AGENT)
        assert device.restart_asked.wait(180), [(r.state, r.code, r.detail) for r in server.reports]
    assert device.versions.current == job.model_digest


def test_a_release_is_installed_handed_over_and_committed_and_its_counter_becomes_the_floor(
    server: UpdateServer, release: ReleaseOnDisk, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    older = make_release(tmp_path / "older", "0.1.9")
    old_counter = server.publish_agent(older)
    job = server.agent_job(release, server.publish_agent(release))
    install(server, state, job)
    assert (state / "agent" / "trial").read_text().startswith(f"digest {release.digest}\nstarts 0\n")
    with AgentDevice(state, server, release.digest) as device:
        report = server.wait_for("committed")
        assert report.running_digest == release.digest
        assert report.extra == {"of": "agent"}
        # Back to an older release under its old counter: the floor is its own, and holds.
        device.runner.job(server.agent_job(older, old_counter, job_id="job-2"), Subject.AGENT)
        assert server.wait_for("refused", job_id="job-2").code == "release_floor"
        # The floor of models is another one.
        model = build_package(tmp_path / "package", write_tiny_yolo(tmp_path / "m.onnx"), created_at="2026-01-01T00:00:00.000Z")
        server.publish(model)
        device.runner.job(server.job(model, 1, job_id="job-3"))
        assert server.wait_for("committed", job_id="job-3").running_digest == model.digest
    assert not (state / "agent" / "trial").exists()


def test_two_updates_are_never_under_way_at_once(server: UpdateServer, release: ReleaseOnDisk, tmp_path: Path) -> None:
    state = tmp_path / "state"
    model = build_package(tmp_path / "package", write_tiny_yolo(tmp_path / "m.onnx"), created_at="2026-01-01T00:00:00.000Z")
    model_job = server.job(model, server.publish(model), job_id="model-job")
    install(server, state, server.agent_job(release, server.publish_agent(release)))
    server.faults.black_hole = lambda path: path == "metadata/timestamp.json"  # the trial goes on
    server.reports.clear()
    with AgentDevice(state, server, release.digest) as device:
        device.runner.job(model_job)
        server.wait_for("trial")
        assert device.runner.state is State.TRIAL
        assert [report for report in server.reports if report.job_id == "model-job"] == []
        server.faults.black_hole = lambda path: False
        server.wait_for("committed", job_id="job-1")
        server.wait_for("committed", job_id="model-job")
    order = [(report.job_id, report.state) for report in server.reports]
    assert order.index(("job-1", "committed")) < order.index(("model-job", "accepted"))


def test_a_release_signed_by_the_models_key_is_refused(server: UpdateServer, release: ReleaseOnDisk, tmp_path: Path) -> None:
    server.agents_signed_by = "models"
    assert refused(server, tmp_path / "state", server.agent_job(release, server.publish_agent(release))) == "metadata"


def test_a_model_signed_by_the_agents_key_is_refused(server: UpdateServer, tmp_path: Path) -> None:
    model = build_package(tmp_path / "package", write_tiny_yolo(tmp_path / "m.onnx"), created_at="2026-01-01T00:00:00.000Z")
    server.models_signed_by = "agents"
    job = server.job(model, server.publish(model))
    assert refused(server, tmp_path / "state", job, Subject.MODEL) == "metadata"


def test_a_release_that_the_models_role_lists_is_none(server: UpdateServer, release: ReleaseOnDisk, tmp_path: Path) -> None:
    """Somebody with the models key lists agents/... in the metadata that he may sign."""
    server.agents_among_the_models = True
    assert refused(server, tmp_path / "state", server.agent_job(release, server.publish_agent(release))) == "unknown_agent"


def test_a_job_for_a_model_sent_to_the_agent_is_refused_and_the_other_way_round(
    server: UpdateServer, release: ReleaseOnDisk, tmp_path: Path
) -> None:
    counter = server.publish_agent(release)
    astray = server.sign(Job("job-1", release.digest, counter))
    assert refused(server, tmp_path / "state", astray) == "job_subject"
    job = server.agent_job(release, counter, job_id="job-2")
    assert refused(server, tmp_path / "state", job, Subject.MODEL) == "job_subject"


def test_a_job_that_the_director_did_not_sign_is_refused(server: UpdateServer, release: ReleaseOnDisk, tmp_path: Path) -> None:
    job = server.agent_job(release, server.publish_agent(release), key="agents")
    assert refused(server, tmp_path / "state", job) == "job_signature"


@pytest.mark.parametrize(
    ("machine", "code"),
    [
        (Machine(machine="aarch64", system_site_packages=False), "platform"),
        (Machine(python=(3, 9), system_site_packages=False), "python"),
        (Machine(system_site_packages=True), "platform"),
    ],
)
def test_a_release_for_another_device_is_refused_before_its_wheels_are_fetched(
    server: UpdateServer, release: ReleaseOnDisk, tmp_path: Path, machine: Machine, code: str
) -> None:
    job = server.agent_job(release, server.publish_agent(release))
    assert refused(server, tmp_path / "state", job, agent={"machine": machine}) == code
    assert [request.path for request in server.requests if request.path.endswith(".whl")] == []


def test_an_agent_without_the_launcher_refuses(server: UpdateServer, release: ReleaseOnDisk, tmp_path: Path) -> None:
    job = server.agent_job(release, server.publish_agent(release))
    assert refused(server, tmp_path / "state", job, agent={"launched": False}) == "no_launcher"


def test_a_wheel_swapped_at_the_server_is_refused(server: UpdateServer, release: ReleaseOnDisk, tmp_path: Path) -> None:
    job = server.agent_job(release, server.publish_agent(release))
    (path,) = [path for path in server.files if "needed" in path]
    content = bytearray(server.files[path])
    content[-1] ^= 1
    server.files[path] = bytes(content)
    assert refused(server, tmp_path / "state", job) == "wrong_digest"


def test_a_release_whose_own_check_fails_is_refused_and_known_as_bad(server: UpdateServer, tmp_path: Path) -> None:
    release = make_release(tmp_path / "release", check=CHECK_FAILS)
    counter = server.publish_agent(release)
    assert refused(server, tmp_path / "state", server.agent_job(release, counter)) == "install_check"
    server.reports.clear()
    assert refused(server, tmp_path / "state", server.agent_job(release, counter, job_id="job-2")) == "known_bad"


def test_a_release_that_pip_cannot_install_is_refused(server: UpdateServer, tmp_path: Path) -> None:
    """A wheel may look harmless and still be none to pip: one that needs a package which the release does not have."""
    sources = write_sources(tmp_path / "release")
    (sources / "needed-1.0-py3-none-any.whl").unlink()
    write_wheel(sources, "needed", "1.0", {"needed.py": ""}, requires="another-package")
    (sources / LOCK).write_text(lock_of(sources))
    release = describe(sources)
    assert refused(server, tmp_path / "state", server.agent_job(release, server.publish_agent(release))) == "install"


def test_an_installation_cut_short_is_cleared_away_and_begun_again(
    server: UpdateServer, release: ReleaseOnDisk, tmp_path: Path
) -> None:
    """A power cut in the middle of pip: the release is there, half an environment around it, no mark that it is whole."""
    state = tmp_path / "state"
    job = server.agent_job(release, server.publish_agent(release))
    with AgentDevice(state, server, agent={"python": tmp_path / "no-python"}) as device:
        device.runner.job(job, Subject.AGENT)
        assert server.wait_for("refused", timeout_s=180).code == "install"
    folder = device.versions.folder(release.digest)
    half = folder / "lib" / "python3" / "site-packages" / "half_written"
    half.mkdir(parents=True)
    (folder / "bin").symlink_to(half)
    device.versions.wheels(release.digest).parent.mkdir(exist_ok=True)
    versions = AgentVersions(state / "agent", prefix=state / "base")
    versions.clear_environment(release.digest)
    assert list(folder.iterdir()) == []
    (folder / "wheels").mkdir()
    versions.clear_environment(release.digest)
    assert [path.name for path in folder.iterdir()] == ["wheels"]
    assert not versions.is_complete(release.digest)


def test_what_the_launcher_took_back_is_reported_by_the_version_before(
    server: UpdateServer, release: ReleaseOnDisk, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    install(server, state, server.agent_job(release, server.publish_agent(release)))
    (state / "agent" / "failed").write_text(f"{release.digest} crash_loop\n")
    (state / "agent" / "current").unlink()
    with AgentDevice(state, server):
        report = server.wait_for("rolled_back")
    assert (report.code, report.running_digest) == ("crash_loop", "")
    assert not (state / "agent" / "versions" / release.digest).exists()


def test_a_version_that_a_person_put_aside_is_not_called_bad(
    server: UpdateServer, release: ReleaseOnDisk, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    counter = server.publish_agent(release)
    install(server, state, server.agent_job(release, counter))
    (state / "agent" / "failed").write_text(f"{release.digest} put_aside\n")
    (state / "agent" / "current").unlink()
    with AgentDevice(state, server) as device:
        assert server.wait_for("rolled_back").code == "put_aside"
        device.runner.job(server.agent_job(release, counter, job_id="job-2"), Subject.AGENT)
        assert device.restart_asked.wait(180)


def test_wheels_that_are_here_already_do_not_cross_the_link(
    server: UpdateServer, release: ReleaseOnDisk, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    install(server, state, server.agent_job(release, server.publish_agent(release)))
    newer = make_release(tmp_path / "newer", "0.3.0")
    with AgentDevice(state, server, release.digest) as device:
        server.wait_for("committed")
        server.requests.clear()
        device.runner.job(server.agent_job(newer, server.publish_agent(newer), job_id="job-2"), Subject.AGENT)
        assert device.restart_asked.wait(180), [(r.state, r.code, r.detail) for r in server.reports]
    fetched = {request.path.rpartition(".whl")[0].split(".", 1)[-1] for request in server.requests if ".whl" in request.path}
    assert len(fetched) == 1
    assert fetched.pop().startswith("bowerbird-0.3.0")
    assert device.versions.previous == release.digest


def test_the_old_device_that_knows_no_agents_role_still_updates_models(server: UpdateServer, tmp_path: Path) -> None:
    """A repository with the new role is one that python-tuf's client of an older agent walks through."""
    model = build_package(tmp_path / "package", write_tiny_yolo(tmp_path / "m.onnx"), created_at="2026-01-01T00:00:00.000Z")
    job = server.job(model, server.publish(model))
    device = UpdateDevice(tmp_path / "state", server.root, server.send)
    server.connect(device.runner.block)
    with device:
        device.runner.job(job)
        assert server.wait_for("committed").running_digest == model.digest
    assert not any("agents.json" in request.path for request in server.requests)
