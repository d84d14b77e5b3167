"""`bowerbird-agent`: the device's command line.

In: arguments. Out: text, or JSON where a script would want it, and an exit code: 0 fine, 1 something failed while running, 2 the
arguments or the configuration are wrong. It only parses, builds and prints; heavy packages are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import shutil
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bowerbird_agent.errors import AgentError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bowerbird_agent.folder_score import ScoredPicture

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
_LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"

_EXAMPLES = """\
examples:
  bowerbird-agent run --config agent.toml
  bowerbird-agent --check-config --config agent.toml
  bowerbird-agent doctor --config agent.toml
  bowerbird-agent score pictures/ --model best.onnx --top 100 --out to-label/
  bowerbird-agent bench --model best.onnx
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (the process's own arguments when None) and return the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.check_config:
        arguments.command = _check_config
    if arguments.command is None:
        _parser().print_help()
        return EXIT_USAGE
    _configure_logging(arguments)
    # FFmpeg writes about every broken macroblock; what matters of it arrives as an error of ours.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")
    # RTSP over TCP (see `stream.py`): read at every opening, so it must stand here once and not change while threads run.
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
    try:
        code: int = arguments.command(arguments)
    except ConfigError as error:
        return _fail(error, EXIT_USAGE)
    except (AgentError, OSError) as error:
        return _fail(error, EXIT_FAILED)
    except ImportError:
        from bowerbird_agent.opencv_build import find_opencv

        try:
            find_opencv()
        except AgentError as error:  # OpenCV is an extra of its own; the message names it
            return _fail(error, EXIT_FAILED)
        raise
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from bowerbird_models.errors import ModelError

        if isinstance(error, ModelError):
            return _fail(error, EXIT_FAILED)
        raise
    return code


def _fail(error: Exception, code: int) -> int:
    print(f"bowerbird-agent: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bowerbird-agent",
        description="Watches cameras with a YOLO model and sends the frames worth a human label.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bowerbird-agent {_version()}")
    parser.add_argument("--check-config", action="store_true", help="only check the configuration, all faults at once")
    _common(parser, defaults=True)
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = _command(
        commands, "run", "run the device until it is stopped", "bowerbird-agent run --config /etc/bowerbird/agent.toml"
    )
    run.add_argument("--check-config", action="store_true", default=argparse.SUPPRESS, help="only check the configuration")
    run.add_argument("--until-done", action="store_true", help="end when all films have ended and the server has every frame")
    run.set_defaults(command=_run)

    score = _command(
        commands,
        "score",
        "a folder of unlabelled pictures in, the ones worth labelling out",
        "bowerbird-agent score pictures/ --model best.onnx --top 100 --out to-label/\n"
        "  bowerbird-agent score pictures/ --model best.onnx --budget-bytes 20000000 --json",
    )
    score.add_argument("folder", type=Path, metavar="DIR", help="pictures, also in folders below")
    score.add_argument("--model", type=Path, required=True, help="ONNX file or model package")
    score.add_argument(
        "--top", type=_positive, metavar="N", help="most pictures to choose (default: 50 without --budget-bytes)"
    )
    score.add_argument("--budget-bytes", type=_positive, metavar="N", help="most bytes of pictures to choose")
    score.add_argument("--out", type=Path, metavar="DIR", help="copy the chosen pictures there, with chosen.csv")
    score.add_argument("--csv", type=Path, metavar="FILE", help="write every picture with its score and what became of it")
    score.add_argument("--threads", type=_positive, default=1, metavar="N", help="threads of the model (default 1)")
    score.set_defaults(command=_score)

    bench = _command(
        commands,
        "bench",
        "how long each stage of a frame takes here",
        "bowerbird-agent bench --model best.onnx --source street.mp4",
    )
    bench.add_argument("--model", type=Path, help="ONNX file or model package (default: the configuration's)")
    bench.add_argument("--source", default="synthetic:?seed=1&width=1280&height=720", help="film, folder, camera or synthetic:")
    bench.add_argument("--frames", type=_positive, default=100, metavar="N", help="frames to measure (default 100)")
    bench.add_argument("--threads", type=_positive, default=1, metavar="N", help="threads of the model (default 1)")
    bench.set_defaults(command=_bench)

    doctor = _command(
        commands,
        "doctor",
        "look at machine, runtimes, cameras, disk, clock and broker",
        "bowerbird-agent doctor --config agent.toml",
    )
    doctor.set_defaults(command=_doctor)
    return parser


def _command(commands: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _common(parser, defaults=False)
    return parser


def _common(parser: argparse.ArgumentParser, *, defaults: bool) -> None:
    """Options that stand before or behind the command's name; the one behind wins."""

    def default(value: Any) -> Any:
        return value if defaults else argparse.SUPPRESS

    parser.add_argument(
        "--config",
        type=Path,
        default=default(Path("/etc/bowerbird/agent.toml")),
        metavar="FILE",
        help="the device's agent.toml",
    )
    parser.add_argument("--json", action="store_true", default=default(False), help="answer as JSON")
    parser.add_argument(
        "--log-level", default=default("info"), choices=("debug", "info", "warning", "error"), help="default: info"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


def _configure_logging(arguments: argparse.Namespace) -> None:
    level = arguments.log_level.upper()
    quiet = arguments.command is not _run and level == "INFO"
    logging.basicConfig(level="WARNING" if quiet else level, format=_LOG_FORMAT, stream=sys.stderr)
    for name in ("tuf", "securesystemslib", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _version() -> str:
    try:
        return metadata.version("bowerbird")
    except metadata.PackageNotFoundError:
        return "0 (not installed)"


def _check_config(arguments: argparse.Namespace) -> int:
    from bowerbird_agent.config import check_files, read_config, summary

    try:
        config = read_config(arguments.config)
        check_files(config, str(arguments.config))
    except ConfigError as error:
        if not arguments.json:
            raise
        print(json.dumps({"ok": False, "faults": error.faults}, indent=1))
        return EXIT_USAGE
    if arguments.json:
        print(json.dumps({"ok": True, **summary(config)}, indent=1))
    else:
        print(f"{arguments.config}: ok, device {config.device.id} with {len(config.cameras)} camera(s)")
    return EXIT_OK


def _run(arguments: argparse.Namespace) -> int:
    from bowerbird_agent.config import check_files, read_config

    config = read_config(arguments.config)
    check_files(config, str(arguments.config))
    from bowerbird_agent.attempt import cameras_hang
    from bowerbird_agent.device import Device

    device = Device(config, version=_version())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: device.stop())
    device.run(until_done=arguments.until_done)
    if cameras_hang():
        # A call into a driver that returns while the interpreter is taken down aborts the process; everything is written already.
        logging.shutdown()
        os._exit(EXIT_OK)
    return EXIT_OK


def _score(arguments: argparse.Namespace) -> int:
    from bowerbird_agent.folder_score import BROKEN, CHOSEN, score_folder
    from bowerbird_agent.models import open_detector

    top = arguments.top if arguments.top is not None or arguments.budget_bytes is not None else 50
    detector = open_detector(arguments.model, threads=arguments.threads)
    shows = sys.stderr.isatty() and not arguments.json

    def progress(done: int, total: int) -> None:
        if shows and (done % 10 == 0 or done == total):
            print(f"\r{done}/{total} pictures", end="\n" if done == total else "", file=sys.stderr, flush=True)

    scored = score_folder(arguments.folder, detector, top=top, budget_bytes=arguments.budget_bytes, progress=progress)
    chosen = [picture for picture in scored if picture.outcome == CHOSEN]
    broken = [picture for picture in scored if picture.outcome == BROKEN]
    if arguments.csv is not None:
        _write_csv(arguments.csv, scored)
    if arguments.out is not None:
        _copy(arguments.folder, chosen, arguments.out)
    if arguments.json:
        print(
            json.dumps(
                {"pictures": [_row(picture) for picture in scored], "chosen": len(chosen), "broken": len(broken)}, indent=1
            )
        )
    else:
        for picture in chosen:
            print(f"{picture.value:.3f}  {','.join(picture.reasons) or '-':24}  {picture.path}")
        _print_totals(scored)
    for picture in broken:
        print(f"skipped, does not decode: {picture.path}", file=sys.stderr)
    return EXIT_OK if len(broken) < len(scored) else EXIT_FAILED


def _row(picture: ScoredPicture) -> dict[str, Any]:
    return {
        "path": str(picture.path),
        "outcome": picture.outcome,
        "value": round(picture.value, 4),
        "reasons": list(picture.reasons),
        "detections": picture.detections,
        "best_score": round(picture.best_score, 4),
        "like": "" if picture.like is None else str(picture.like),
        "bytes": picture.size_bytes,
    }


def _write_csv(path: Path, pictures: Sequence[ScoredPicture]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "outcome", "value", "reasons", "detections", "best_score", "like", "bytes"])
        for picture in pictures:
            row = _row(picture)
            writer.writerow([*list(row.values())[:3], " ".join(row["reasons"]), *list(row.values())[4:]])


def _copy(folder: Path, chosen: Sequence[ScoredPicture], out: Path) -> None:
    """The chosen pictures under their own names, with the table of why."""
    for picture in chosen:
        target = out / picture.path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(picture.path, target)
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "chosen.csv", chosen)


def _print_totals(scored: Sequence[ScoredPicture]) -> None:
    outcomes: dict[str, int] = {}
    for picture in scored:
        outcomes[picture.outcome] = outcomes.get(picture.outcome, 0) + 1
    print(f"{len(scored)} pictures: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))


def _bench(arguments: argparse.Namespace) -> int:
    from bowerbird_agent.bench import bench
    from bowerbird_agent.capture import Source
    from bowerbird_agent.models import open_detector

    model = arguments.model
    if model is None:
        from bowerbird_agent.config import read_config

        model = read_config(arguments.config).model.factory
        if model is None:
            raise AgentError("name a model with --model FILE; the configuration has no model.factory")
    result = bench(
        open_detector(model, threads=arguments.threads), Source("bench", arguments.source, loop=True), frames=arguments.frames
    )
    if arguments.json:
        from dataclasses import asdict

        print(json.dumps(asdict(result), indent=1))
        return EXIT_OK
    print(f"{result.runtime}, {arguments.threads} thread(s), {result.source_wh[0]}x{result.source_wh[1]} -> ", end="")
    print(f"{result.network_hw[1]}x{result.network_hw[0]}, {result.frames} frames")
    print(f"{'stage':10} {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9}")
    for stage, times in result.stages.items():
        print(f"{stage:10} {times.p50_ms:9.2f} {times.p95_ms:9.2f} {times.p99_ms:9.2f}")
    print(f"{result.fps:.1f} frames per second, {result.peak_rss_mb:.0f} MB at most")
    return EXIT_OK


def _doctor(arguments: argparse.Namespace) -> int:
    from bowerbird_agent.config import read_config
    from bowerbird_agent.doctor import FAIL, examine

    findings = examine(read_config(arguments.config), str(arguments.config))
    if arguments.json:
        from dataclasses import asdict

        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{finding.state:5} {finding.name}: {finding.found}" + (f" -> {finding.advice}" if finding.advice else ""))
    return EXIT_FAILED if any(finding.state == FAIL for finding in findings) else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
