"""Up and down across released versions, with data: what an earlier version's own code has left is read whole by this one.

`tests/data/releases/VERSION.tar.gz` is what `scripts/release-data` kept of each release: a lived-in site, and the state folder
of a device. Going down is tried with the earlier version's code where git has its history; what an older version could not read
it must refuse untouched.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bowerbird_agent import state_format
from bowerbird_agent.spool.spool import Spool
from bowerbird_agent.state_format import StateTooNew, check_state, claim_state
from bowerbird_agent.updates.state import UpdateState
from bowerbird_agent.updates.updater import Record, State, Subject
from bowerbird_server.catalogue import Catalogue, rollouts
from bowerbird_server.catalogue.fleet import add_device
from bowerbird_server.errors import EnvironmentFault
from bowerbird_server.install_check import main as server_check
from bowerbird_server.releases.repository import Repository
from bowerbird_server.site import Site
from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.agent_releases import make_release
from bowerbird_testing.device_release import ROOT
from bowerbird_wire.messages import Job

RELEASES = sorted((ROOT / "tests" / "data" / "releases").glob("*.tar.gz"))
CAMERA = '[[cameras]]\nname = "camera"\nsource = "synthetic:?seed=1"\n'


@pytest.fixture(params=RELEASES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What a release left."""
    folder = tmp_path / "kept"
    folder.mkdir()
    subprocess.run(["tar", "-xzf", request.param, "-C", folder], check=True)
    return folder


def told(kept: Path) -> dict[str, Any]:
    return dict(json.loads((kept / "counts.json").read_text()))


def everything(folder: Path) -> dict[str, str]:
    """Digest of every file, by its name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def either(package: str, now: str, first: str, name: str) -> str:
    """The line that imports a name from where it lies now, or lay in the first version (ADR 12)."""
    return f"try:\n    from {package}.{now} import {name}\nexcept ImportError:\n    from {package}.{first} import {name}\n"


def older(kept: Path, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages of the release whose data this is; skips where git does not have it."""
    version = told(kept)["version"]
    commit = told(kept)["commit"]
    if subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip(f"git does not have version {version} here (commit {commit[:12]})")
    tree = kept.parent / "tree"
    if not tree.exists():
        tree.mkdir()
        packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(tree)], input=packed, check=True)
    path = os.pathsep.join(str(tree / part) for part in ("wire", "models", "agent", "server", "tests"))
    guard = f"import bowerbird_wire; assert bowerbird_wire.__file__.startswith({str(tree)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", guard + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# -- up ---------------------------------------------------------------------------------------------------------------------


def test_there_is_data_of_a_released_version() -> None:
    assert RELEASES


def test_a_site_of_an_earlier_version_is_brought_up_to_date_with_every_row(kept: Path) -> None:
    before = told(kept)["rows"]
    with Site.open(kept / "site") as site:
        now = {table: site.catalogue.value(f'SELECT count(*) FROM "{table}"') for table in before}  # noqa: S608 - names of ours
        assert now == before
        assert site.catalogue.damage() == ""
        assert site.catalogue.rows("PRAGMA foreign_key_check") == []
        # And what is new works in it: a rollout of the agent has no model.
        devices = [row["id"] for row in site.catalogue.rows("SELECT id FROM device WHERE state = 'active'")]
        if not devices:
            devices = [add_device(site.catalogue, "cam-99", "site", "test")["id"]]
        rollout = rollouts.start_rollout(site.catalogue, "a" * 64, 1, devices, "test", agent_version="9.9.9")
        assert rollouts.get(site.catalogue, rollout)["model"] is None
    with Site.open(kept / "site") as site:
        assert site.catalogue.rows("PRAGMA foreign_key_check") == []
        with pytest.raises(sqlite3.IntegrityError):
            rollouts.start_rollout(site.catalogue, "no such model", 1, devices, "test")


def test_a_state_folder_of_an_earlier_version_is_taken_over_with_every_frame(kept: Path) -> None:
    spool = Spool(kept / "state" / "spool", max_bytes=10**9, min_free_bytes=0)
    assert sum(spool.counts().values()) == told(kept)["frames"]
    spool.close()
    assert check_state(kept / "state") == 1
    state = UpdateState(kept / "state" / "update")
    assert state.record() == Record()
    state.close()


def test_this_agent_runs_on_it(kept: Path, tmp_path: Path) -> None:
    state = {"device": {"state_dir": str(kept / "state")}}
    chosen = {path.name for path in (kept / "state" / "spool" / "frames").glob("*.frame")}
    assert chosen
    config = write_config(tmp_path / "agent", port=9, cameras=CAMERA, overrides=state)
    with AgentProcess(config) as agent:
        deadline_s = time.monotonic() + 120
        while " INFO model " not in agent.log and time.monotonic() < deadline_s:
            time.sleep(0.25)
        code, _ = agent.terminate()
    assert code == 0, agent.log
    # A window that was cut short is given up, as ever; what was chosen stays.
    assert chosen <= {path.name for path in (kept / "state" / "spool" / "frames").glob("*.frame")}


def test_an_update_repository_of_an_earlier_version_gets_a_role_for_the_agent_and_keeps_its_root(
    kept: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        + either("bowerbird_server", "releases.repository", "repository", "Repository")
        + "Repository(Path(sys.argv[1]) / 'repository', Path(sys.argv[1]) / 'keys').create()\n"
    )
    assert (done := older(kept, code, tmp_path)).returncode == 0, done.stderr
    repository = Repository(tmp_path / "repository", tmp_path / "keys")
    root = repository.trusted_root()
    release = make_release(tmp_path / "release")
    assert repository.releases("agents") == {}
    assert repository.publish_agent(release) == 1
    assert repository.releases("agents") == {release.digest: 1}
    assert repository.trusted_root() == root
    assert (tmp_path / "keys" / "agents.pem").stat().st_mode & 0o777 == 0o600
    repository.refresh()
    assert repository.publish_agent(release, again=True) == 2


# -- down -------------------------------------------------------------------------------------------------------------------


def test_the_earlier_agent_reads_what_this_one_has_written(kept: Path) -> None:
    """The format has not changed: a device may go back, and its frames with it."""
    claim_state(kept / "state", version="9.9.9")
    state = UpdateState(kept / "state" / "update")
    job = Job("job-1", "a" * 64, 3, extra={"of": "agent"})
    state.save(Record(State.COMMITTED, job, Subject.AGENT, trusted=True), release_floor=3)
    state.raise_floor("release", 7)
    state.close()
    done = older(
        kept,
        "import sys\nfrom pathlib import Path\n"
        + either("bowerbird_agent", "spool.spool", "spool", "Spool")
        + either("bowerbird_agent", "updates.state", "update_state", "UpdateState")
        + "folder = Path(sys.argv[1])\n"
        "spool = Spool(folder / 'spool', max_bytes=10**9, min_free_bytes=0)\n"
        "state = UpdateState(folder / 'update')\n"
        "print(sum(spool.counts().values()), state.record().state.value, state.floor('release'))\n",
        kept / "state",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(told(kept)["frames"]), "idle", "7"]


def test_an_agent_refuses_a_state_folder_of_a_later_version_and_leaves_it_as_it_is(kept: Path, tmp_path: Path) -> None:
    (kept / "state" / "format.json").write_text('{"format": 99, "version": "9.9.9"}')
    before = everything(kept / "state")
    with pytest.raises(StateTooNew, match=r"written by version 9\.9\.9"):
        claim_state(kept / "state", version="0.1.0")
    check = [sys.executable, "-m", "bowerbird_agent.install_check", str(kept / "state")]
    done = subprocess.run(check, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "Install 9.9.9 or a later one" in done.stderr) == (1, True), done.stderr
    config = write_config(tmp_path / "agent", port=9, cameras=CAMERA, overrides={"device": {"state_dir": str(kept / "state")}})
    with AgentProcess(config) as agent:
        assert agent.wait() == 1
        assert "nothing was changed" in agent.log
    assert everything(kept / "state") == before


def test_a_server_refuses_a_catalogue_of_a_later_version_and_leaves_it_as_it_is(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Site.open(kept / "site") as site:
        site.catalogue.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('catalogue', 'of_tomorrow', 'now')"
        )
    before = everything(kept / "site")
    with pytest.raises(EnvironmentFault, match="changed by a later version"):
        Catalogue(kept / "site" / "catalogue.db")
    assert server_check([str(kept / "site")]) == 1
    assert "of_tomorrow" in capsys.readouterr().err
    assert {name: digest for name, digest in everything(kept / "site").items() if not name.endswith(("-wal", "-shm"))} == {
        name: digest for name, digest in before.items() if not name.endswith(("-wal", "-shm"))
    }


def test_a_format_that_is_written_is_one_that_is_read() -> None:
    assert state_format.WRITES <= state_format.READS_UP_TO <= state_format.WRITES + 1
