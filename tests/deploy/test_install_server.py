"""install.sh --server, whole, in a folder of its own as any user: first installation, first run, update, a bad release, the way back.

The wheels come from the package index that pip is set up for, by the server's lock file; nothing is built.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bowerbird_testing.device_release import ROOT, VERSION, build_wheel

SCRIPT = ROOT / "deploy" / "install.sh"
LOCK = ROOT / "deploy" / "constraints" / f"server-py{sys.version_info[0]}{sys.version_info[1]}.txt"
pytestmark = [pytest.mark.xdist_group("install"), pytest.mark.timeout(1200)]
pytestmark.append(
    pytest.mark.skipif(not LOCK.is_file(), reason=f"there is no {LOCK.name}: scripts/lock makes that of Python 3.11")
)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), "--server", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheelhouse")
    build_wheel(folder)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    command += ["--require-hashes", "-r", str(LOCK), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    if done.returncode != 0:
        pytest.skip(f"the wheelhouse cannot be filled without a package index: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory, wheelhouse: Path) -> Path:
    """A machine with the server of this version."""
    folder = tmp_path_factory.mktemp("machine")
    done = run("--prefix", folder, "--python", sys.executable, "--wheelhouse", wheelhouse)
    assert done.returncode == 0, done.stderr
    return folder


def link(prefix: Path, name: str) -> str:
    return (prefix / "opt/bowerbird-server" / name).readlink().name.partition("-")[0]


def test_the_first_installation_makes_program_unit_and_data_folder_and_no_configuration(prefix: Path) -> None:
    assert link(prefix, "current") == VERSION
    data = prefix / "var/lib/bowerbird"
    assert data.stat().st_mode & 0o777 == 0o700
    assert list(data.iterdir()) == []
    unit = (prefix / "etc/systemd/system/bowerbird.service").read_text()
    assert f"ExecStart={prefix}/opt/bowerbird-server/current/bin/bowerbird serve --data {data}\n" in unit
    assert not (prefix / "etc/bowerbird").exists()
    assert not (prefix / "opt/bowerbird").exists()


def test_its_first_run_makes_the_site_and_answers(prefix: Path) -> None:
    unit = (prefix / "etc/systemd/system/bowerbird.service").read_text()
    command = shlex.split(re.search(r"^ExecStart=(.*)", unit, re.MULTILINE)[1])  # type: ignore[index]
    data = prefix / "var/lib/bowerbird"
    with (prefix / "server.log").open("wb") as log:
        server = subprocess.Popen([*command, "--port", "0"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=data)
        try:
            deadline_s = time.monotonic() + 120
            while not (data / "serve.json").exists():
                assert time.monotonic() < deadline_s, (prefix / "server.log").read_text()
                assert server.poll() is None, (prefix / "server.log").read_text()
                time.sleep(0.3)
            assert json.loads((data / "serve.json").read_text())
        finally:
            server.terminate()
            server.wait(60)
    assert (data / "keys").stat().st_mode & 0o777 == 0o700
    assert (data / "catalogue.db").exists()


def test_options_of_the_agent_are_refused(tmp_path: Path) -> None:
    done = run("--prefix", tmp_path / "machine", "--model", "x.onnx")
    assert (done.returncode, "are of the agent" in done.stderr) == (1, True)


def test_an_update_a_bad_release_and_the_way_back_that_is_refused_where_data_would_be_lost(
    prefix: Path, wheelhouse: Path, tmp_path: Path
) -> None:
    newer = build_wheel(tmp_path / "newer", version="8.2.0")
    options = ["--prefix", prefix, "--python", sys.executable, "--wheelhouse", wheelhouse]
    done = run(*options, "--wheel", newer)
    assert done.returncode == 0, done.stderr
    assert (link(prefix, "current"), link(prefix, "previous")) == ("8.2.0", VERSION)

    broken = tmp_path / "broken"
    broken.mkdir()
    bad = build_wheel(broken, version="8.3.0", missing="server/bowerbird_server/fleet/delivery.py")
    done = run(*options, "--wheel", bad)
    assert done.returncode == 1
    assert "was not made current; 8.2.0" in done.stderr
    assert link(prefix, "current") == "8.2.0"

    catalogue = prefix / "var/lib/bowerbird/catalogue.db"
    with sqlite3.connect(catalogue) as db:
        db.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('catalogue', 'of_8_2_0', 'now')")
    db.close()
    done = run("--prefix", prefix, "--rollback")
    assert done.returncode == 1
    assert "changed by a later version" in done.stderr
    assert (link(prefix, "current"), link(prefix, "previous")) == ("8.2.0", VERSION)
    with sqlite3.connect(catalogue) as db:
        db.execute("DELETE FROM _sqlite_migrations WHERE name = 'of_8_2_0'")
    db.close()
    assert run("--prefix", prefix, "--rollback").returncode == 0
    assert link(prefix, "current") == VERSION


def test_removal_keeps_the_data_unless_told(prefix: Path) -> None:
    data = prefix / "var/lib/bowerbird"
    assert run("--prefix", prefix, "--uninstall").returncode == 0
    assert not (prefix / "opt/bowerbird-server").exists()
    assert (data / "catalogue.db").exists()
    assert run("--prefix", prefix, "--uninstall", "--purge").returncode == 0
    assert not data.exists()
    assert os.listdir(prefix / "etc/systemd/system") == []  # noqa: PTH208
    shutil.rmtree(prefix, ignore_errors=True)
