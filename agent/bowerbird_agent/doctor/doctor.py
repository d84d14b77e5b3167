"""Looks at everything an agent needs and says what is missing: machine, runtimes, files, disk, clock, model, cameras, broker.

In: a configuration. Out: one `Finding` per point, each with what to do when it is not well. It changes nothing but a probe file in the
state folder, and leaves a running agent its connection.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bowerbird_agent.capture.capture import kind_of, open_camera
from bowerbird_agent.clock import CLOCK_OK_FROM_S
from bowerbird_agent.config_files import check_files
from bowerbird_agent.doctor.findings import ABSENT, FAIL, OK, WARN, Finding
from bowerbird_agent.doctor.link import examine_link
from bowerbird_agent.errors import AgentError, ConfigError
from bowerbird_agent.identity.identity import filesystem_of
from bowerbird_agent.tuning.autotune import REFERENCE_RUNTIME
from bowerbird_agent.tuning.model_config import AUTO
from bowerbird_models.errors import ModelError
from bowerbird_models.runtimes import available

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bowerbird_agent.capture.camera_config import CameraConfig
    from bowerbird_agent.config import AgentConfig
    from bowerbird_models.runtimes import RuntimeFound

_CAMERA_TIMEOUT_S = 15.0
_SLOW_FSYNC_S = 0.5


def examine(config: AgentConfig, source: str) -> list[Finding]:
    """All findings, quick ones first. Nothing raises: what goes wrong is a finding."""
    checks: list[tuple[str, Callable[[], Finding | list[Finding]]]] = [
        ("machine", _machine),
        *((f"runtime {found.name}", lambda found=found: _runtime(found, config)) for found in available()),
        ("opencv", _opencv),
        ("files", lambda: _files(config, source)),
        ("disk", lambda: _disk(config)),
        ("clock", _clock),
        ("model", lambda: _model(config)),
        *((f"camera {camera.name}", lambda camera=camera: _camera(camera)) for camera in config.cameras),
        ("link", lambda: examine_link(config)),
    ]
    found: list[Finding] = []
    for name, check in checks:
        try:
            result = check()
            found += result if isinstance(result, list) else [result]
        except (AgentError, ModelError, OSError) as error:
            found.append(Finding(name, FAIL, str(error)))
        except ImportError as error:
            found.append(Finding(name, FAIL, f"cannot be looked at ({error})", "install what is missing first; see above"))
    return found


def _machine() -> Finding:
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    memory_mb = pages * page_bytes // 2**20
    machine = os.uname()
    found = f"{machine.sysname} {machine.machine}, {os.cpu_count()} cores, {memory_mb} MB of memory"
    if memory_mb < 512:
        return Finding("machine", WARN, found, "a detector of 640 pixels needs about 250 MB; use a smaller one")
    return Finding("machine", OK, found)


def _runtime(found: RuntimeFound, config: AgentConfig) -> Finding:
    name = f"runtime {found.name}"
    if found.usable:
        named = ", named by model.runtime" if found.name == config.model.runtime else ""
        return Finding(name, OK, f"{found.version}{named}")
    what, _, to_do = found.reason.partition("; ")
    if found.name == config.model.runtime:
        return Finding(name, FAIL, f"{what}, and model.runtime names it", f'{to_do or what}; or set model.runtime = "auto"')
    if found.name == REFERENCE_RUNTIME and config.model.runtime == AUTO:
        return Finding(name, FAIL, what, to_do)
    return Finding(name, ABSENT, what, to_do)


def _opencv() -> Finding:
    from bowerbird_agent.capture.opencv_build import find_opencv

    build = find_opencv()
    whose = f"the wheel {' and '.join(build.wheels)}" if build.wheels else "the system's"
    reads = ", ".join(
        f"{'with' if has else 'without'} {name}"
        for name, has in (("FFmpeg", build.ffmpeg), ("GStreamer", build.gstreamer), ("V4L2", build.v4l2))
    )
    found = f"{build.version}, {whose} ({build.path}), {reads}"
    if len(build.wheels) > 1:
        return Finding("opencv", WARN, found, "these wheels overwrite each other's files; keep one of them")
    if not build.ffmpeg and not build.gstreamer:
        return Finding("opencv", WARN, found, "without FFmpeg or GStreamer neither films nor rtsp can be read")
    return Finding("opencv", OK, found)


def _files(config: AgentConfig, source: str) -> Finding:
    try:
        check_files(config, source)
    except ConfigError as error:
        return Finding("files", FAIL, "; ".join(error.faults), "correct the configuration")
    return Finding("files", OK, "all files that the configuration names are there")


def _disk(config: AgentConfig) -> Finding:
    folder = config.device.state_dir
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".doctor"
    started_s = time.monotonic()
    with probe.open("wb") as file:
        file.write(b"\0" * 65536)
        file.flush()
        os.fsync(file.fileno())
    took_s = time.monotonic() - started_s
    probe.unlink()
    free = shutil.disk_usage(folder).free
    found = f"{free // 10**6} MB free at {folder}, a safe write takes {took_s * 1000:.0f} ms"
    if free < config.spool.min_free_bytes:
        return Finding("disk", FAIL, found, f"free some space: below {config.spool.min_free_bytes // 10**6} MB nothing is kept")
    if filesystem_of(folder) in {"tmpfs", "ramfs"}:
        return Finding(
            "disk", WARN, found, "this folder is in memory and does not survive a power cut; choose another state_dir"
        )
    if took_s > _SLOW_FSYNC_S:
        return Finding("disk", WARN, found, "the disk is slow; frames of live cameras may be dropped")
    return Finding("disk", OK, found)


def _clock() -> Finding:
    now_s = time.time()
    found = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))
    if now_s < CLOCK_OK_FROM_S:
        return Finding("clock", FAIL, found, "the clock is in the past; set it (NTP), or model updates are refused")
    return Finding("clock", OK, f"{found} (UTC)")


def _model(config: AgentConfig) -> Finding:
    import numpy as np

    from bowerbird_agent.tuning.model_runtime import FALLBACK, PINNED, TUNED, ModelRuntimes
    from bowerbird_agent.tuning.opening import open_package
    from bowerbird_agent.updates.model_store import ModelSlot, ModelStore

    slot = ModelStore(config.device.state_dir / "models").active()
    runtimes = ModelRuntimes(config.model, config.device.state_dir)
    with tempfile.TemporaryDirectory(prefix="bowerbird-doctor-") as scratch:
        if slot is None:
            if config.model.factory is None:
                return Finding("model", WARN, "none yet", "the server has to send one, or name model.factory")
            package = open_package(config.model.factory, Path(scratch))
            slot = ModelSlot(package.digest, package.dir, package.manifest)
        detector, runs = runtimes.open(slot)
        with detector:
            picture = np.full((480, 640, 3), 114, np.uint8)
            detector.detect(picture)
            started_s = time.perf_counter()
            detector.detect(picture)
            took_ms = (time.perf_counter() - started_s) * 1000
            unknown = _not_redactable(config, detector.class_names)
            found = f"{slot.digest[:12]}, {len(detector.class_names)} classes: {runs.candidate} ({detector.runtime}), "
    found += f"{took_ms:.0f} ms for a frame; {runs.origin}: "
    if unknown:
        return Finding("model", FAIL, found + runs.why, unknown)
    why, _, to_do = runs.why.partition("; run `")
    if runs.origin in {PINNED, TUNED}:
        return Finding("model", OK, found + runs.why)
    # A device that has nothing to choose from needs no tuning either.
    return Finding("model", WARN if runs.origin == FALLBACK else OK, found + why, f"run `{to_do}" if to_do else "")


def _not_redactable(config: AgentConfig, class_names: Sequence[str]) -> str:
    """What to do about classes that are to be redacted and that the model does not know; "" when there are none."""
    faults = [
        f"camera {camera.name}: redact.classes names {name}, which this model does not know, so no frame of it is kept"
        for camera in config.cameras
        if camera.redact is not None
        for name in camera.redact.classes
        if name not in class_names
    ]
    return "; ".join([*faults, "use a model that does, or correct the list"]) if faults else ""


def _camera(config: CameraConfig) -> Finding:
    name = f"camera {config.name}"
    result: list[Finding] = []

    def probe() -> None:
        try:
            result.append(_look_through(config))
        except (AgentError, ImportError) as error:
            result.append(Finding(name, FAIL, str(error)))

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_CAMERA_TIMEOUT_S)
    if result:
        return result[0]
    advice = "check camera and network"
    if kind_of(config.source) in {"csi", "gst"}:
        from bowerbird_agent.capture.gstreamer import by_hand

        advice = by_hand(config.source)
    return Finding(name, FAIL, f"no picture within {_CAMERA_TIMEOUT_S:.0f} s", advice)


def _look_through(config: CameraConfig) -> Finding:
    """One frame of a camera, as the agent would see it."""
    from bowerbird_agent.capture.camera_health import ADVICE, is_dark, look_at
    from bowerbird_agent.capture.framing import Framing

    name = f"camera {config.name}"
    camera = open_camera(config.to_source())
    try:
        frame = camera.read()
    finally:
        camera.close()
    if frame is None:
        return Finding(name, FAIL, "gives no frame", "check first_frame, last_frame and take")
    image = frame.image_bgr
    height, width = image.shape[:2]
    found = f"{width}x{height} pixels, {camera.fps:g} frames per second"
    if config.masks:
        found += f", {len(config.masks)} privacy mask{'s' if len(config.masks) > 1 else ''}"
    if camera.live and is_dark(look_at(image, Framing(config.to_source()).visible)):
        return Finding(name, WARN, f"{found}, dark", ADVICE["dark"])
    return Finding(name, OK, found)
