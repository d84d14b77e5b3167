"""Releases of the agent made of handmade wheels of a few hundred bytes, which install in a second and behave as a test wants.

In: a folder, a version, and what the agent in it shall do. Out: a release folder that verifies, or one with a single fault. The
wheels are real: pip installs them, with hashes and without an index.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from bowerbird_models.agent_release import LOCK, SBOM, ReleaseOnDisk, describe_release

MACHINE = platform.machine()
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
AGENT = "import pathlib, sys\n\n\ndef main():\n    print('agent', sys.argv[1:])\n"
CHECK_PASSES = "import sys\nsys.exit(0)\n"
CHECK_FAILS = "import sys\nsys.exit('install check: imports: this release is broken')\n"


def write_wheel(
    folder: Path, project: str, version: str, files: Mapping[str, str], *, tag: str = "py3-none-any", requires: str = ""
) -> Path:
    """A wheel of text files, its RECORD included; a file's name may be anything, also what no honest wheel has."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{project}-{version}-{tag}.whl"
    info = f"{project}-{version}.dist-info"
    every = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
        + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{name},,\n" for name in [*every, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**every, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), text)
    return path


def agent_wheel(folder: Path, version: str, *, check: str = CHECK_PASSES) -> Path:
    """A wheel called bowerbird, whose agent does nothing and whose install check says what `check` says."""
    files = {
        "bowerbird_agent/__init__.py": "",
        "bowerbird_agent/cli.py": AGENT,
        "bowerbird_agent/install_check.py": check,
        f"bowerbird-{version}.dist-info/entry_points.txt": "[console_scripts]\nbowerbird-agent = bowerbird_agent.cli:main\n",
    }
    return write_wheel(folder, "bowerbird", version, files)


def lock_of(folder: Path) -> str:
    """A lock file of all wheels in a folder, with their hashes."""
    lines = []
    for wheel in sorted(folder.glob("*.whl")):
        project, version = wheel.name.split("-")[:2]
        lines.append(f"{project}=={version} \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return "".join(lines)


def write_sources(folder: Path, version: str = "0.2.0", *, check: str = CHECK_PASSES, salt: str = "") -> Path:
    """A folder that lacks only its manifest: the agent, one package that it needs, lock file, bill of materials."""
    agent_wheel(folder, version, check=check)
    write_wheel(folder, "needed", "1.0", {"needed.py": f"salt = {salt!r}\n"})
    (folder / LOCK).write_text(lock_of(folder))
    (folder / SBOM).write_text(json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "components": []}))
    return folder


def describe(folder: Path, *, machine: str = MACHINE, python: str = PYTHON) -> ReleaseOnDisk:
    """The release of a folder, verified."""
    return describe_release(
        folder, python=python, machine=machine, extras=("agent", "opencv"), created_at="2026-11-28T00:00:00Z"
    )


def make_release(folder: Path, version: str = "0.2.0", *, check: str = CHECK_PASSES, salt: str = "") -> ReleaseOnDisk:
    """A whole release."""
    return describe(write_sources(folder, version, check=check, salt=salt))
