"""What an engineer carries to a device: a wheel of this tree, and a wheelhouse with all that it needs.

In: this repository. Out: wheels, unchanged, with another version, or with a fault that a bad release could have; and the folder that
`pip download` fills. Nothing is installed here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSION = str(re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1])  # type: ignore[index]
_SOURCES = (
    "wire",
    "models",
    "agent",
    "server",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "deploy/constraints",
    "deploy/systemd",
    "deploy/launch.sh",
)
LOCK = ROOT / "deploy" / "constraints" / f"device-py{sys.version_info[0]}{sys.version_info[1]}.txt"


def build_wheel(
    out: Path, *, version: str | None = None, broken: bool = False, dies_at_start: bool = False, missing: str = ""
) -> Path:
    """A wheel of a copy of this tree.

    Args:
        out: folder for the wheel and the copy; made.
        version: another one than pyproject.toml has.
        broken: the agent cannot be imported, like a release that was built from half a change.
        missing: a file of the tree that was forgotten.
        dies_at_start: everything can be imported, and the agent ends before it is ready.
    """
    tree = out / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name in _SOURCES:
        source, target = ROOT / name, tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    if version is not None:
        project = tree / "pyproject.toml"
        project.write_text(project.read_text().replace(f'\nversion = "{VERSION}"', f'\nversion = "{version}"'))
    if missing:
        (tree / missing).unlink()
    if broken:
        (tree / "agent" / "bowerbird_agent" / "device.py").write_text("from bowerbird_agent import not_yet_written  # noqa\n")
    if dies_at_start:
        device = tree / "agent" / "bowerbird_agent" / "device.py"
        changed = device.read_text().replace(
            "    def run(self", "    def run(self, **_):\n        raise SystemExit(1)\n\n    def _run(self", 1
        )
        device.write_text(changed)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, timeout=120)
    shutil.rmtree(tree)
    (wheel,) = out.glob(f"bowerbird-{version or '*'}-*.whl")
    return wheel


def fill_wheelhouse(folder: Path, wheel: Path) -> str:
    """Download what a device needs into `folder`, as docs/deploy says; what pip said when it could not, else ""."""
    what = ["--require-hashes", "-r", str(LOCK)] if LOCK.is_file() else [f"{wheel}[agent,opencv]"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    done = subprocess.run([*command, "-d", str(folder), *what], capture_output=True, text=True, timeout=500, check=False)
    return "" if done.returncode == 0 else done.stderr.strip()[-300:]
