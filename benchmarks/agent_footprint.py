"""The whole agent process: memory, time to the first result, growth; the peer's process beside it.

    python benchmarks/agent_footprint.py [--quick] [--precision int8|fp32] [--runtime openvino-cpu|onnxruntime-cpu] [--video film.avi]

In: nothing; a yolo11n at 640 pixels is made for the run (extra `train`; random weights unless `benchmarks/detector.py` has trained
one on this machine), and a film of synthetic scenes of 768x576 is written unless `--video` names one. Out: the figure as a last
line of JSON: the most resident memory of `bowerbird-agent run`, in MB of 10^6 bytes, read from the kernel twice a second (goal: at
most 200 with int8, 250 with fp32). It runs what `benchmarks/detector.py --figure speedup` finds fastest here: int8 on OpenVINO with
huge pages, what is left in floats in bf16 where the processor computes in it; without OpenVINO, and with fp32, ONNX Runtime.
`--runtime` asks for one. The agent does all that it does in the field: capture, detection, scores, choice, spool on disk, MQTT over
TLS with a certificate of its own to a real broker, behind which a server sends receipts. For `ok` also: the first result, seen at
the broker as a published detection, within 1.5 s of the start of the process (median of several starts; the device has run before,
as after every boot but the first), and growth below 1 MB per 10,000 frames (a line through the later half of the readings; the full
form runs until 10,000 frames are judged, the quick form only shows what it saw). Children of the agent are told apart. The peer is
a process that does nothing but `YOLO("model.onnx").predict(frame)` on the same film with the fp32 file, one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figure import ROOT, Arm, memory_mb, report, serve_blocks

if TYPE_CHECKING:
    from bowerbird_testing.tls_broker import TlsBroker

sys.path.insert(0, str(ROOT / "tests"))

MEMORY_GOALS_MB = {"int8": 200.0, "fp32": 250.0}
FIRST_RESULT_GOAL_S, GROWTH_GOAL_MB = 1.5, 1.0
FULL_FRAMES, QUICK_S = 10_000, 20.0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute instead of a quarter of an hour")
    parser.add_argument("--precision", choices=sorted(MEMORY_GOALS_MB), default="int8")
    parser.add_argument("--runtime", choices=["openvino-cpu", "onnxruntime-cpu"], help="instead of the fastest one here")
    parser.add_argument("--video", type=Path, help="film to show instead of synthetic scenes")
    parser.add_argument("--peer", nargs=2, metavar=("ONNX", "FILM"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer is not None:
        serve_peer(*options.peer)
        return 0
    from street import street_film  # brings OpenCV, which no arm shall find imported

    from bowerbird_testing.onnx_models import offline_environment
    from bowerbird_testing.receipt_server import ReceiptServer
    from bowerbird_testing.tls_broker import TlsBroker

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film = options.video.resolve() if options.video else street_film(folder / "street.avi")
        package, fp32 = make_package(folder)
        model = {"factory": str(package), "threads": 1, **fastest(options.precision, options.runtime)}
        with ExitStack() as running:
            site = running.enter_context(TlsBroker(folder / "site", {"cam-01": "demo"}, clients=("receipt-server", "listener")))
            receipts = ReceiptServer(site.server.host, site.server.port, tls=site.server.tls_context("receipt-server"))
            server = running.enter_context(receipts)
            starts = [first_result_s(folder / f"start-{n}", site, model, film) for n in range(3)]
            seen = watch(folder / "run", site, model, film, quick=options.quick)
            received = len(server.committed)
        command = [sys.executable, __file__, "--peer", str(fp32), str(film)]
        started_s = time.monotonic()
        peer = Arm("peer", command, env=offline_environment(folder))
        peer_first_s = time.monotonic() - started_s
        try:
            peer.block(20 if options.quick else 200)
        finally:
            peer.close()
    goal = MEMORY_GOALS_MB[options.precision]
    growth = seen["growth_mb_per_10000_frames"]
    ok = statistics.median(starts) <= FIRST_RESULT_GOAL_S and (options.quick or growth < GROWTH_GOAL_MB)
    details = {
        "precision": options.precision,
        "model": {name: value for name, value in model.items() if name != "factory"},
        "first_result_s": [round(each, 2) for each in starts],
        "first_result_goal_s": FIRST_RESULT_GOAL_S,
        **seen,
        "growth_goal_mb": GROWTH_GOAL_MB,
        "growth_counts": not options.quick,
        "frames_committed_at_the_server": received,
        "peer_memory_mb": round(peer.facts["memory_mb"]),
        "peer_first_result_s": round(peer_first_s, 2),
        "threads": 1,
    }
    return report(
        f"agent-footprint-{options.precision}",
        seen["memory_mb"],
        goal,
        "MB resident at most",
        at_least=False,
        details=details,
        also=ok,
    )


def fastest(precision: str, runtime: str | None) -> dict[str, Any]:
    """Keys of `[model]`: what the speed figure ran with on this machine."""
    from bowerbird_models.package import ONNX_FP32, ONNX_INT8_OPENVINO, ONNX_INT8_ORT
    from bowerbird_models.runtimes import available_elsewhere

    usable = {found.name: found.precisions for found in available_elsewhere() if found.usable}
    chosen = runtime or ("openvino-cpu" if precision == "int8" and "openvino-cpu" in usable else "onnxruntime-cpu")
    if chosen not in usable:
        raise SystemExit(f"{chosen} is not installed here")
    if precision == "fp32":
        return {"runtime": chosen, "variant": ONNX_FP32}
    if chosen == "onnxruntime-cpu":
        return {"runtime": chosen, "variant": ONNX_INT8_ORT}
    floats = "bf16" if "bf16" in usable[chosen] else "fp32"
    return {"runtime": chosen, "variant": ONNX_INT8_OPENVINO, "precision": floats, "huge_pages": True}


def configure(folder: Path, site: TlsBroker, model: Mapping[str, Any], film: Path) -> Path:
    """agent.toml of a device in the field: everything on, nothing that only tests need."""
    from bowerbird_testing.agent_process import write_config
    from bowerbird_testing.tls_broker import device_certificate

    identity = folder / "state" / "identity"
    identity.mkdir(mode=0o700, parents=True)
    for name, source in (
        ("1.pem", device_certificate(folder, site.authority, "cam-01")),
        ("ca.pem", Path(site.server.ca_file)),
    ):
        (identity / name).write_bytes(source.read_bytes())
        (identity / name).chmod(0o600)
    camera = f'[[cameras]]\nname = "gate"\nsource = "{film}"\nfps = 30\nloop = true'
    return write_config(
        folder,
        port=site.server.port,
        cameras=camera,
        overrides={
            "broker": {"tls": True},
            "model": model,
            "selection": {"window_frames": 100, "frames_per_window": 4, "min_gap_s": 0.5},
            "accounting": {"encode_everything": False},
            "health": {"interval_s": 1.0},
            "publish": {"detections": True, "max_per_s": 5.0},
        },
    )


class Listener:
    """Hears what an agent publishes: when its first detection came, and how many frames it says it has judged."""

    def __init__(self, site: TlsBroker) -> None:
        import paho.mqtt.client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        from bowerbird_wire.topics import DetectionsTopic, HealthTopic

        self.first_s: float | None = None
        self.frames = 0
        self._heard = threading.Event()
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, "listener", protocol=mqtt.MQTTv5)
        self._filters = [(DetectionsTopic.filter("demo"), 0), (HealthTopic.filter("demo"), 0)]
        self._client.on_connect = lambda client, *_: client.subscribe(self._filters)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._take
        self._client.tls_set_context(site.server.tls_context("listener"))
        self._client.connect(site.server.host, site.server.port)
        self._client.loop_start()
        if not self._subscribed.wait(20):
            raise SystemExit("the broker does not answer")

    def _take(self, _client: Any, _data: Any, message: Any) -> None:
        from bowerbird_wire.codec import decode
        from bowerbird_wire.messages import Health

        if message.topic.endswith("/health"):
            self.frames = decode(Health, message.payload).frames_scored
        elif self.first_s is None:
            self.first_s = time.monotonic()
            self._heard.set()

    def wait_first(self, timeout_s: float) -> float:
        """The moment of the first detection."""
        if not self._heard.wait(timeout_s) or self.first_s is None:
            raise SystemExit(f"no detection within {timeout_s:.0f} s")
        return self.first_s

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


def first_result_s(folder: Path, site: TlsBroker, model: Mapping[str, Any], film: Path) -> float:
    """Seconds from the start of the process to its first published detection; the second start of a device, its package installed."""
    from bowerbird_testing.agent_process import AgentProcess

    config = configure(folder, site, model, film)
    took_s = 0.0
    for _ in range(2):
        listener = Listener(site)
        started_s = time.monotonic()
        with AgentProcess(config) as agent:
            took_s = listener.wait_first(60) - started_s
            agent.terminate()
        listener.close()
    return took_s


def watch(folder: Path, site: TlsBroker, model: Mapping[str, Any], film: Path, *, quick: bool) -> dict[str, Any]:
    """Memory over time, against frames judged."""
    from bowerbird_testing.agent_process import AgentProcess

    config = configure(folder, site, model, film)
    listener = Listener(site)
    readings: list[tuple[int, float]] = []
    children: dict[int, float] = {}
    with AgentProcess(config) as agent:
        listener.wait_first(60)
        assert agent.process is not None
        started_s = time.monotonic()
        while time.monotonic() - started_s < QUICK_S if quick else listener.frames < FULL_FRAMES:
            if agent.process.poll() is not None:
                raise SystemExit(f"the agent ended: {agent.log[-2000:]}")
            readings.append((listener.frames, memory_mb(agent.process.pid)))
            for child in children_of(agent.process.pid):
                children[child] = max(children.get(child, 0.0), memory_mb(child))
            time.sleep(0.5)
        took_s = time.monotonic() - started_s
        agent.terminate()
    listener.close()
    later = readings[len(readings) // 2 :]
    return {
        "memory_mb": max(reading for _, reading in readings),
        "growth_mb_per_10000_frames": round(slope(later) * 10_000, 3),
        "frames_judged": readings[-1][0],
        "frames_per_s": round(readings[-1][0] / took_s, 2),
        "children_mb": [round(each) for each in children.values()],
    }


def slope(readings: list[tuple[int, float]]) -> float:
    """MB per frame of the line of least squares."""
    frames = [float(frame) for frame, _ in readings]
    if len(set(frames)) < 2:
        return 0.0
    return statistics.linear_regression(frames, [memory for _, memory in readings]).slope


def children_of(pid: int) -> list[int]:
    """Processes that the agent has started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def make_package(folder: Path) -> tuple[Path, Path]:
    """A package with the fp32 file and its int8 files; and the fp32 file."""
    import trained_model

    from bowerbird_models.package import ONNX_INT8_OPENVINO, ONNX_INT8_ORT, build_package
    from bowerbird_server.quantisation.quantise import quantise
    from bowerbird_testing.onnx_models import ExportCase, export_models

    print("making the model ...", flush=True)
    if trained_model.is_ready():
        model = trained_model.trained_model(folder)
        fp32, pictures = model.onnx, list(model.calibration)[:16]
    else:
        exported = export_models(folder, [ExportCase("yolo11n", "yolo11n.yaml", 640)])["yolo11n"]
        fp32, pictures = exported.path, [each.image_path for each in exported.predictions]
    files = quantise(fp32, folder / "int8", [ONNX_INT8_ORT, ONNX_INT8_OPENVINO], pictures).files
    package = build_package(
        folder / "package", fp32, created_at="2026-01-01T00:00:00Z", golden_images=pictures[:2], variants=dict(files)
    )
    return package.dir, fp32


def serve_peer(model: str, film: str) -> None:
    """Child: Ultralytics' predict on a film, frame after frame; ready when the first result is there."""
    import cv2
    from ultralytics import YOLO

    from bowerbird_testing.onnx_export_child import stand_in_for_torchvision

    stand_in_for_torchvision()
    theirs = YOLO(model, task="detect")
    capture = cv2.VideoCapture(film)

    def step() -> None:
        nonlocal capture
        decoded, frame = capture.read()
        if not decoded:
            capture = cv2.VideoCapture(film)
            decoded, frame = capture.read()
        theirs.predict(frame, imgsz=640, verbose=False)

    step()
    serve_blocks(step, lambda: {"memory_mb": memory_mb()})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
