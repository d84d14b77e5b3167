"""`bowerbird-agent snapshot`: one annotated frame, with the score of each strategy and whether it would be kept.

In: arguments. Out: a picture, and text or JSON about it. What is drawn and why is decided by `snapshot.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bowerbird_agent.cli.options import EXIT_OK, add_command, positive
from bowerbird_agent.errors import AgentError

if TYPE_CHECKING:
    import argparse


def add_snapshot(commands: Any) -> None:
    """The command `snapshot`."""
    snapshot = add_command(
        commands,
        "snapshot",
        "one annotated frame, with the score of each strategy and whether it would be kept",
        "bowerbird-agent snapshot --config agent.toml --camera gate --out snap.jpg\n"
        "  bowerbird-agent snapshot --source street.mp4 --model best.onnx --out snap.jpg --json",
    )
    what = snapshot.add_mutually_exclusive_group()
    what.add_argument("--camera", metavar="NAME", help="a camera of the configuration (default: its first)")
    what.add_argument("--source", help="film, folder, camera or synthetic:, with no configuration")
    snapshot.add_argument("--model", type=Path, help="ONNX file or model package (default: the model on this device)")
    snapshot.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture, .jpg or .png")
    snapshot.add_argument(
        "--warm-up",
        type=positive,
        default=30,
        metavar="N",
        help="frames before the one shown, to know what moves (default 30)",
    )
    snapshot.set_defaults(command=_snapshot)


def _snapshot(arguments: argparse.Namespace) -> int:
    import cv2

    from bowerbird_agent.capture.capture import Source
    from bowerbird_agent.replay.snapshot import draw, take_snapshot
    from bowerbird_agent.selection.policy import Policy
    from bowerbird_agent.storing.redaction import redactors_of
    from bowerbird_agent.tuning.opening import model_on_device, open_detector

    if arguments.out.suffix.lower() not in {".jpg", ".jpeg", ".png"}:
        raise AgentError(f"--out {arguments.out} is no picture; name a file that ends in .jpg or .png")
    policy, model, threads, redactor = Policy(), arguments.model, 1, None
    if arguments.source is not None:
        source = Source("snapshot", arguments.source)
        if model is None:
            raise AgentError("--source needs --model FILE; with --camera the model on this device is taken")
    else:
        from bowerbird_agent.config import read_config

        config = read_config(arguments.config)
        policy, threads = config.selection, config.model.threads or 1
        cameras = {camera.name: camera for camera in config.cameras}
        name = arguments.camera or config.cameras[0].name
        if name not in cameras:
            raise AgentError(f"there is no camera {name!r} in {arguments.config}; there are {', '.join(cameras)}")
        source = cameras[name].to_source()
        redactor = redactors_of(config.cameras).get(name)
        model = model or model_on_device(config)
    snapshot = take_snapshot(
        source, open_detector(model, threads=threads), policy, warm_up_frames=arguments.warm_up, redactor=redactor
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(arguments.out), draw(snapshot)):
        raise AgentError(f"{arguments.out} cannot be written; check folder and permissions")
    if arguments.json:
        print(json.dumps({"out": str(arguments.out), **snapshot.plain()}, indent=1))
    else:
        print(f"{arguments.out}: {snapshot.verdict}")
        for strategy, score in snapshot.strategy_scores.items():
            weight = policy.strategies.get(strategy, 0.0)
            print(f"  {strategy:20} {score:.3f}" + (f"  weight {weight:g}" if weight else ""))
    return EXIT_OK
