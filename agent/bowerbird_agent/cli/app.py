"""`bowerbird-agent`: the device's command line.

In: arguments. Out: text, or JSON where a script would want it, and an exit code: 0 fine, 1 something failed while running, 2
the arguments or the configuration are wrong, 3 a thread of the running agent has hung, 75 another version of it is to be
started. It only parses, builds and prints; heavy packages are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from bowerbird_agent.cli.enrol import add_enrol
from bowerbird_agent.cli.explain import add_explain
from bowerbird_agent.cli.models import add_bench, add_tune
from bowerbird_agent.cli.options import EXIT_FAILED, EXIT_HUNG, EXIT_OK, EXIT_USAGE, add_command, add_common_options
from bowerbird_agent.cli.replay import add_replay
from bowerbird_agent.cli.score import add_score
from bowerbird_agent.cli.snapshot import add_snapshot
from bowerbird_agent.errors import AgentError, ConfigError, StageHung

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bowerbird_agent.config import AgentConfig

_LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"

_EXAMPLES = """\
examples:
  bowerbird-agent enrol bundle.json --config agent.toml
  bowerbird-agent run --config agent.toml
  bowerbird-agent --check-config --config agent.toml
  bowerbird-agent doctor --config agent.toml
  bowerbird-agent score pictures/ --model best.onnx --top 100 --out to-label/
  bowerbird-agent tune --config agent.toml
  bowerbird-agent bench --model best.onnx --compare
  bowerbird-agent snapshot --config agent.toml --out snap.jpg
  bowerbird-agent replay --video street.mp4 --model best.onnx --out report.html
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (the process's own arguments when None) and return the exit code."""
    arguments = _parser().parse_args(argv)
    arguments.is_own_process = argv is None
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
        from bowerbird_agent.capture.opencv_build import find_opencv

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
    add_common_options(parser, defaults=True)
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = add_command(
        commands, "run", "run the device until it is stopped", "bowerbird-agent run --config /etc/bowerbird/agent.toml"
    )
    run.add_argument("--check-config", action="store_true", default=argparse.SUPPRESS, help="only check the configuration")
    run.add_argument("--until-done", action="store_true", help="end when all films have ended and the server has every frame")
    run.set_defaults(command=_run)

    add_enrol(commands, _version())
    add_score(commands)
    add_tune(commands)
    add_bench(commands)

    add_snapshot(commands)
    add_replay(commands)
    add_explain(commands)

    doctor = add_command(
        commands,
        "doctor",
        "look at machine, runtimes, cameras, disk, clock and broker",
        "bowerbird-agent doctor --config agent.toml",
    )
    doctor.set_defaults(command=_doctor)
    return parser


def _configure_logging(arguments: argparse.Namespace) -> None:
    level = arguments.log_level or ("info" if arguments.command is _run else "warning")
    logging.basicConfig(level=level.upper(), format=_LOG_FORMAT, stream=sys.stderr)
    for name in ("tuf", "securesystemslib", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _version() -> str:
    try:
        return metadata.version("bowerbird")
    except metadata.PackageNotFoundError:
        return "0 (not installed)"


def _check_config(arguments: argparse.Namespace) -> int:
    from bowerbird_agent.config import read_config, summary
    from bowerbird_agent.config_files import check_files

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
    from bowerbird_agent.config import read_config
    from bowerbird_agent.inference.memory import keep_little
    from bowerbird_agent.remote.runner import RemoteWishes
    from bowerbird_models.core_dumps import forbid_core_dumps

    if arguments.is_own_process:
        forbid_core_dumps()
        # Before the wishes are read: beginning again is no start that could count against one of them.
        _begin_again_on_huge_pages(read_config(arguments.config))
        keep_little()
    remote = RemoteWishes(arguments.config)
    config = remote.config
    from bowerbird_agent.device import Device
    from bowerbird_agent.health.sd_notify import Notifier, NotifyAddress
    from bowerbird_agent.updates.launch import EXIT_RESTART, Launch

    def set_level(level: str) -> None:
        if arguments.log_level is None:
            logging.getLogger().setLevel(level.upper())

    set_level(config.log.level)
    # Children (self-tests) must not speak to the supervisor in our name.
    found = {name: os.environ.pop(name) for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID") if name in os.environ}
    device = Device(
        config,
        launch=Launch.from_environment(os.environ, prefix=Path(sys.prefix), config=arguments.config),
        version=_version(),
        remote=remote,
        on_log_level=set_level,
        notifier=Notifier(NotifyAddress.from_environment(found, pid=os.getpid())),
        give_up=os._exit,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: device.stop())
    signal.signal(signal.SIGHUP, lambda _number, _frame: device.ask_reload())
    code = EXIT_OK
    try:
        device.run(until_done=arguments.until_done)
    except StageHung as error:
        code = _fail(error, EXIT_HUNG)
    except Exception:
        if not device.is_hanging:
            raise
        logging.exception("the agent ends")
        code = EXIT_FAILED
    if device.is_hanging:
        # A thread that sits in a driver would be waited for, or be torn down under the driver's feet.
        logging.shutdown()
        sys.stderr.flush()
        os._exit(EXIT_RESTART if device.is_restart_asked and code == EXIT_OK else code)
    return EXIT_RESTART if device.is_restart_asked and code == EXIT_OK else code


def _begin_again_on_huge_pages(config: AgentConfig) -> None:
    """Replace this process by itself with the C library told to use huge pages, where that was chosen and is not so yet.

    The C library reads its tunables once, when a process begins. Arguments, process id and everything else stay.
    """
    from bowerbird_agent.tuning.hardware import environment_to_begin_again
    from bowerbird_agent.tuning.model_runtime import wants_huge_pages

    if not wants_huge_pages(config.model, config.device.state_dir):
        return
    environment = environment_to_begin_again(os.environ)
    if environment is None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, sys.orig_argv, environment)  # noqa: S606  # this very program with these very arguments


def _doctor(arguments: argparse.Namespace) -> int:
    from bowerbird_agent.config import read_config
    from bowerbird_agent.doctor.doctor import examine
    from bowerbird_agent.doctor.findings import FAIL

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
