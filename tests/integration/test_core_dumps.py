"""A process of ours that crashes leaves no file with its memory."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import os, resource, signal, ctypes
from bowerbird_models.core_dumps import forbid_core_dumps
assert forbid_core_dumps() is True
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), flush=True)
picture = b"unredacted" * 100_000
os.kill(os.getpid(), signal.SIGSEGV)
"""


def _wants_cores() -> None:
    with_limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (with_limit, with_limit))


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_crash_leaves_no_core_although_the_shell_allowed_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=tmp_path, capture_output=True, text=True, preexec_fn=_wants_cores, check=False
    )
    assert done.returncode == -signal.SIGSEGV, done.stderr
    assert done.stdout.strip() == "(0, 0) 0"
    assert list(tmp_path.iterdir()) == []
