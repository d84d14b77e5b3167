"""A Debian with Python and nothing else, made by debootstrap, with our files for a device in its /srv.

In: a folder. Out: the root of the system, and commands run in it by chroot. It takes a minute and needs root and Debian's packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bowerbird_testing.device_release import ROOT, build_wheel, fill_wheelhouse
from bowerbird_testing.tiny_yolo import write_tiny_yolo

SUITE = "bookworm"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def why_not() -> str:
    """Why no Debian can be made here, "" when one can."""
    if os.geteuid() != 0:
        return "only root may make a chroot"
    if shutil.which("debootstrap", path=PATH) is None:
        return "no debootstrap: apt-get install debootstrap"
    if sys.version_info[:2] != (3, 11):
        return f"the wheelhouse is for the Python of {SUITE}, which is 3.11"
    return ""


def make_debian(folder: Path) -> Path:
    """The root of a new Debian; skips the test where packages cannot be had. /srv: deploy, wheelhouse, first.onnx."""
    root = folder / "debian"
    command = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv", SUITE, str(root), _mirror()]
    environment = {**os.environ, "PATH": PATH}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    if done.returncode != 0:
        pytest.skip(f"debootstrap cannot make a Debian here: {done.stdout.strip()[-300:]}")
    wheelhouse = root / "srv" / "wheelhouse"
    if said := fill_wheelhouse(wheelhouse, build_wheel(wheelhouse)):
        pytest.skip(f"the wheelhouse cannot be filled without a package index: {said}")
    shutil.copytree(ROOT / "deploy", root / "srv" / "deploy")
    write_tiny_yolo(root / "srv" / "first.onnx")
    folder.chmod(0o755)
    return root


def inside(root: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a command in it, as root, and return what it said."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    argv = ["chroot", str(root), *map(str, command)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False, env=environment)


def _mirror() -> str:
    """Where this machine takes Debian's packages from."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {SUITE}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = done.stdout.split()
    if not found:
        pytest.skip(f"apt on this machine knows no place for Debian's {SUITE}; run apt-get update")
    return found[0]
