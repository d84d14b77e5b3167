"""The whole way of an agent that updates itself, with real processes and the real launcher: killed anywhere, it ends with one version.

The repository is answered from the disk; versions are installed by venv and pip; each start is one that systemd would make.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bowerbird_models.agent_release import ReleaseOnDisk, load_release
from bowerbird_server.releases.repository import Repository
from bowerbird_testing.agent_child import EXIT_RESTART, program
from bowerbird_testing.agent_releases import CHECK_FAILS, CHECK_PASSES, describe, lock_of, write_sources, write_wheel
from bowerbird_testing.launched import Launched
from bowerbird_wire.codec import encode
from bowerbird_wire.messages import OF, Job

pytestmark = pytest.mark.timeout(300)


@dataclass
class Bench:
    """A device with its installed version, and a repository with one release."""

    device: Launched
    repository: Repository
    release: ReleaseOnDisk
    options: dict[str, Any]

    def set(self, **options: Any) -> None:
        self.options.update(options)
        (self.device.state / "options.json").write_text(json.dumps(self.options))

    def boot(self) -> int:
        """One start by systemd, to its end."""
        return self.device.start().wait(120)

    def run(self, *, most: int = 12) -> list[int]:
        """Start again and again until a start ends with 0: the job has come to its end and another version is not wanted."""
        codes = [self.boot()]
        while codes[-1] != 0:
            assert len(codes) < most, (codes, self.device.said())
            codes.append(self.boot())
        return codes

    def reports(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.device.state / "reports").read_text().splitlines()]

    def end(self) -> tuple[str, str, str]:
        """State, code and running version of the last report, as the server hears it."""
        last = self.reports()[-1]
        return last["state"], last["code"], last["running"]

    def versions(self) -> list[str]:
        return sorted(path.name for path in (self.device.home / "versions").iterdir())


def release_that_runs(folder: Path, code: str, *, check: str = CHECK_PASSES) -> ReleaseOnDisk:
    """A release whose agent is the program `code`."""
    write_sources(folder, check=check)
    (folder / "bowerbird-0.2.0-py3-none-any.whl").unlink()
    body = "".join(f"    {line}\n" for line in code.splitlines())
    files = {
        "bowerbird_agent_of_the_release.py": f"def main():\n{body}",
        "bowerbird_agent/install_check.py": check,
        "bowerbird-0.2.0.dist-info/entry_points.txt": "[console_scripts]\nbowerbird-agent = bowerbird_agent_of_the_release:main\n",
    }
    write_wheel(folder, "bowerbird", "0.2.0", files)
    (folder / "requirements.txt").write_text(lock_of(folder))
    return describe(folder)


def bench_of(tmp_path: Path, code: str, *, check: str = CHECK_PASSES) -> Bench:
    device = Launched.make(tmp_path / "device")
    (device.base / "bin" / "bowerbird-agent").write_text(program())
    repository = Repository(tmp_path / "repository", tmp_path / "keys")
    repository.create()
    release = release_that_runs(tmp_path / "release", code, check=check)
    job = Job("job-1", release.digest, repository.publish_agent(release), extra={OF: "agent"})
    root = tmp_path / "root.json"
    root.write_bytes(repository.trusted_root())
    bench = Bench(device, repository, release, {})
    bench.set(
        repository=str(tmp_path / "repository"),
        root=str(root),
        job=encode(repository.sign_job(job, device="cam-01")).hex(),
        die_in=[],
        server=True,
        server_deadline_s=5.0,
    )
    return bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = bench_of(tmp_path, _program_of_a_version())
    yield made
    made.device.end()


def _program_of_a_version() -> str:
    """As `program`, with the real packages found before the release's own stub of an install check."""
    return program().replace("sys.path +=", "sys.path[:0] =")


def is_committed(bench: Bench) -> None:
    assert bench.end() == ("committed", "", bench.release.digest)
    assert bench.device.current() == bench.release.digest
    assert bench.versions() == [bench.release.digest]
    assert not (bench.device.home / "trial").exists()
    assert load_release(bench.device.home / "versions" / bench.release.digest / "wheels").digest == bench.release.digest


def test_an_agent_installs_its_successor_hands_over_and_the_successor_commits(bench: Bench) -> None:
    assert bench.run() == [EXIT_RESTART, 0]
    assert bench.device.ran() == ["base", bench.release.digest]
    states = [*dict.fromkeys(report["state"] for report in bench.reports())]
    assert states == ["accepted", "fetching", "verifying", "building", "selftest", "trial", "committed"]
    assert {report["of"] for report in bench.reports()} == {"agent"}
    is_committed(bench)
    # And it stays: later starts are starts of the new version, which nothing counts.
    assert [bench.boot() for _ in range(2)] == [0] * 2
    assert bench.device.ran()[2:] == [bench.release.digest] * 2


KILLS = ("accepted", "fetching", "verifying", "building", "selftest", "trial", "committed")


@pytest.mark.parametrize("state", ["building", "trial"])
def test_killed_in_a_state_it_ends_committed(bench: Bench, state: str) -> None:
    bench.set(die_in=[state])
    codes = bench.run()
    assert codes.count(-signal.SIGKILL) == 1
    is_committed(bench)


def test_killed_in_every_state_one_after_the_other_it_still_ends_committed(bench: Bench) -> None:
    bench.set(die_in=list(KILLS))
    assert bench.run().count(-signal.SIGKILL) == len(KILLS)
    is_committed(bench)


def test_a_successor_that_cannot_be_imported_is_taken_back_and_the_old_one_says_so(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, "import no_such_module_of_a_bad_release")
    assert bench.run() == [EXIT_RESTART, 1, 1, 1, 0]
    assert bench.end() == ("rolled_back", "crash_loop", "")
    assert bench.device.current() == ""
    assert bench.versions() == []


def test_a_successor_that_never_reaches_the_server_gives_itself_up(bench: Bench) -> None:
    bench.set(server=False, server_deadline_s=1.0)
    assert bench.run() == [EXIT_RESTART, EXIT_RESTART, 0]
    assert bench.device.ran() == ["base", bench.release.digest, "base"]
    assert bench.end() == ("rolled_back", "unreachable", "")
    assert bench.device.current() == ""


def test_giving_itself_up_may_be_cut_short_by_a_kill(bench: Bench) -> None:
    bench.set(server=False, server_deadline_s=1.0, die_in=["rolled_back"])
    codes = bench.run()
    assert -signal.SIGKILL in codes
    assert bench.device.ran()[-1] == "base"
    assert bench.end()[:2] == ("rolled_back", "unreachable")


def test_a_successor_that_fails_its_own_check_is_never_started(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, "raise SystemExit(99)", check=CHECK_FAILS)
    assert bench.run() == [0]
    assert bench.end() == ("refused", "install_check", "")
    assert bench.versions() == []


def test_a_good_successor_survives_two_power_cuts_in_its_trial(bench: Bench) -> None:
    assert bench.boot() == EXIT_RESTART
    bench.set(server=False, server_deadline_s=60.0)
    for number in (2, 3):
        bench.device.boot_id = f"boot-{number}"
        child = bench.device.start()
        bench.device.wait_for(number)
        bench.device.kill(child)
    bench.set(server=True)
    bench.device.boot_id = "boot-4"
    assert bench.run() == [0]
    is_committed(bench)
