"""The child's side of heavy or hostile work: one task from a file, JSON lines out, gone with its parent.

In: the path of a task in JSON, written by `train.run_child`; a standard input that stays open as long as the parent lives. Out: one
JSON object a line on standard output (progress, result or error); everything else that is printed goes to standard error, which
the parent keeps as a log. What a task does stands in the module that calls `run_task`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO

from bowerbird_server.errors import BadInput, EnvironmentFault, ServerError
from bowerbird_server.training.dataset_check import NoLabels

Task = Callable[[dict[str, Any], TextIO], dict[str, Any]]

_KINDS: dict[type[ServerError], str] = {
    NoLabels: "no_labels",
    BadInput: "bad_input",
    EnvironmentFault: "environment",
    ServerError: "failed",
}


def run_task(arguments: list[str], tasks: Mapping[str, Task], what: str) -> int:
    """Do the task whose file is the first argument; the exit code is 0 when a result was written.

    Args:
        tasks: by the task's "do".
        what: the work in one word, for messages ("training").
    """
    # Libraries print freely: from here on standard output is standard error, and only we hold the real one.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _die_with_parent()
    try:
        task = json.loads(Path(arguments[0]).read_text())
        result = tasks[task["do"]](task, events)
    except ServerError as error:
        kind = next(name for cls, name in _KINDS.items() if isinstance(error, cls))
        emit(events, event="error", kind=kind, message=str(error))
        return 1
    except OSError as error:
        traceback.print_exc()
        if error.errno != errno.ENOSPC:
            emit(events, event="error", kind="failed", message=f"the {what} stopped: {error}")
            return 1
        emit(events, event="error", kind="environment", message=f"the disk is full; free some space and start the {what} again")
        return 1
    except Exception as error:
        traceback.print_exc()
        emit(events, event="error", kind="failed", message=f"the {what} stopped: {type(error).__name__}: {error}")
        return 1
    emit(events, event="result", **result)
    return 0


def emit(events: TextIO, **fields: Any) -> None:
    """Tell the parent one thing."""
    events.write(json.dumps(fields) + "\n")
    events.flush()


def _die_with_parent() -> None:
    """End this process when the parent's end of our standard input closes, whatever killed the parent."""
    if platform.system() == "Linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: at once, but tied to the parent's *thread*

    def watch() -> NoReturn:
        while os.read(0, 4096):
            pass
        os._exit(3)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
