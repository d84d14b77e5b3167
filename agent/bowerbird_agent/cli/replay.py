"""`bowerbird-agent replay`: a film through the real selection, without a server: what would go up, and why.

In: arguments. Out: text, JSON, an HTML file. What runs is `replay.py`, what is shown `replay/report.py`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bowerbird_agent.cli.options import EXIT_OK, add_command, positive
from bowerbird_agent.errors import AgentError, ConfigError

if TYPE_CHECKING:
    import argparse

    from bowerbird_agent.replay.replay import Setting, Trial
    from bowerbird_wire.messages import Campaign


def add_replay(commands: Any) -> None:
    """The command `replay`."""
    command = add_command(
        commands,
        "replay",
        "a film through the real selection, without a server: what would go up, and why",
        "bowerbird-agent replay --video street.mp4 --model best.onnx --out report.html\n"
        "  bowerbird-agent replay --video street.mp4 --model best.onnx --policy balanced --policy random_audit --frames-total 60\n"
        "  bowerbird-agent replay --video street.mp4 --model best.onnx --policy agent.toml --gt gt.txt --json",
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--video", type=Path, metavar="FILE", help="a film")
    what.add_argument("--source", metavar="SRC", help="any source with an end: film, folder of pictures, synthetic:?frames=600")
    command.add_argument("--model", type=Path, required=True, help="ONNX file or model package")
    command.add_argument(
        "--policy",
        action="append",
        metavar="NAME|FILE",
        help="a template, or an agent.toml whose [selection], [budget] and [image] count (default: balanced); "
        "given twice, both look at the same film",
    )
    command.add_argument("--frames-total", type=positive, metavar="N", help="as if the server wanted so many frames in all")
    command.add_argument("--bytes-per-day", type=positive, metavar="N", help="most bytes in 24 hours, in place of the policy's")
    command.add_argument(
        "--campaign",
        action="append",
        metavar="KEY=VALUE,...",
        help="a campaign beside the policy: class, at_least, below, count_min, count_max, gap_s, frames (all that fit), bytes; "
        "such as class=person,below=0.5,frames=20",
    )
    command.add_argument("--gt", type=Path, metavar="FILE", help="ground truth of the film in MOT form: misses are counted")
    command.add_argument("--gt-class", default="person", metavar="NAME", help="the class that --gt is about (default person)")
    command.add_argument("--frames", type=positive, metavar="N", help="stop after so many frames")
    command.add_argument("--out", type=Path, metavar="FILE", help="write a report with a contact sheet, .html")
    command.add_argument("--threads", type=positive, default=1, metavar="N", help="threads of the model (default 1)")
    command.set_defaults(command=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    from bowerbird_agent.capture.capture import Source, is_live, open_camera, without_password
    from bowerbird_agent.replay.replay import replay
    from bowerbird_agent.tuning.opening import open_detector
    from bowerbird_models.mot import read_mot

    text = str(arguments.video) if arguments.video is not None else arguments.source
    if is_live(text):
        raise AgentError(f"{without_password(text)} is a live camera; replay needs a source with an end, such as a film")
    settings = [_setting(name, arguments) for name in dict.fromkeys(arguments.policy or ["balanced"])]
    truth = None
    if arguments.gt is not None:
        try:
            truth = read_mot(arguments.gt)
        except ValueError as error:
            raise AgentError(str(error)) from error
    if arguments.out is not None:
        _make_room(arguments.out)
    detector = open_detector(arguments.model, threads=arguments.threads)
    for campaign in settings[0].campaigns:
        if campaign.class_name and campaign.class_name not in detector.class_names:
            known = ", ".join(detector.class_names)
            raise ConfigError("--campaign", [f"class {campaign.class_name!r} will not come: the model's classes are {known}"])
    camera = open_camera(Source("replay", text))
    if arguments.frames is None and _never_ends(text):
        raise AgentError(f"{text} never ends; add --frames N, or frames=N to the source")
    shows = sys.stderr.isatty() and not arguments.json

    def progress(done: int) -> None:
        if shows and done % 10 == 0:
            print(f"\r{done} frames", end="", file=sys.stderr, flush=True)

    try:
        trials = replay(
            camera,
            detector,
            settings,
            truth=truth,
            truth_class=arguments.gt_class,
            most_frames=arguments.frames,
            progress=progress,
        )
    finally:
        camera.close()
    if shows:
        print(file=sys.stderr)
    if arguments.out is not None:
        from bowerbird_agent.replay.report import report_page

        arguments.out.write_text(report_page(trials, source=Path(text).name, model=arguments.model.name), encoding="utf-8")
    if arguments.json:
        out = None if arguments.out is None else str(arguments.out)
        print(json.dumps({"out": out, "trials": [trial.plain() for trial in trials]}, indent=1))
    else:
        for trial in trials:
            _print(trial)
        if arguments.out is not None:
            print(arguments.out)
    return EXIT_OK


def _make_room(out: Path) -> None:
    """The folder of the report, before an hour of film has been looked at in vain.

    Raises:
        AgentError: it would overwrite something else than a report, or cannot be written there.
    """
    if out.suffix.lower() not in {".html", ".htm"}:
        raise AgentError(f"--out {out} is to be a page; name a file that ends with .html")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AgentError(f"--out {out} cannot be written ({error.strerror}); name another folder") from error


def _setting(name: str, arguments: argparse.Namespace) -> Setting:
    """A template's name, or a configuration file."""
    from bowerbird_agent.config import read_config
    from bowerbird_agent.replay.replay import Setting
    from bowerbird_agent.selection.policy import TEMPLATES, Policy

    if name in TEMPLATES:
        setting = Setting(name, Policy.template(name))
    elif Path(name).is_file():
        config = read_config(Path(name))
        setting = Setting(name, config.selection, config.budget.to_limits(), config.image)
    else:
        known = ", ".join(sorted(TEMPLATES))
        raise ConfigError(
            "--policy",
            [f"{name!r} is neither a file nor a template; name a template or an agent.toml; the templates are {known}"],
        )
    limits = setting.limits
    if arguments.bytes_per_day is not None:
        limits = replace(limits, bytes_per_day=arguments.bytes_per_day)
    campaigns = tuple(_campaign(number, text) for number, text in enumerate(arguments.campaign or [], 1))
    return replace(setting, limits=limits, frames_total=arguments.frames_total, campaigns=campaigns)


def _campaign(number: int, text: str) -> Campaign:
    """A campaign as it is written on the command line."""
    from bowerbird_agent.selection.campaign import Term
    from bowerbird_wire.messages import Campaign

    kinds = {"frames": int, "bytes": int, "count_min": int, "count_max": int, "at_least": float, "below": float, "gap_s": float}
    values: dict[str, Any] = {"frames": 10**9, "bytes": 10**15}
    try:
        for part in text.split(","):
            key, equals, value = part.strip().partition("=")
            if not equals or key not in {"class", *kinds}:
                raise ValueError(f"{part!r} is none of {', '.join(('class', *kinds))}, each with =VALUE")
            values["class_name" if key == "class" else key] = value if key == "class" else kinds[key](value)
        campaign = Campaign(f"replay-{number}", until_ms=2**53, **values)
        Term.of(campaign)
    except ValueError as error:
        raise ConfigError("--campaign", [str(error)]) from error
    return campaign


def _never_ends(text: str) -> bool:
    from bowerbird_agent.capture.capture import kind_of
    from bowerbird_agent.capture.synthetic import SyntheticScene

    return kind_of(text) == "synthetic" and SyntheticScene.parse(text).frames is None


def _print(trial: Trial) -> None:
    from bowerbird_agent.replay.report import words_of_bytes

    plain = trial.plain()
    cap = trial.setting.limits.bytes_per_day
    capped = f" (the budget lets {words_of_bytes(cap)} go)" if cap is not None and cap < trial.picked_bytes_per_day else ""
    print(
        f"{trial.setting.name}: {plain['picked']} of {trial.frames} frames picked ({plain['picked_at_random']} at random), "
        f"{words_of_bytes(trial.picked_bytes)}, {words_of_bytes(trial.picked_bytes_per_day)} a day at this rate{capped}; "
        f"{plain['sent']} sent before the end"
    )
    if trial.note:
        print(f"  note: {trial.note}")
    for title, key in (("reasons", "reasons"), ("refused", "refused"), ("not chosen", "dropped")):
        if plain[key]:
            print(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in plain[key].items()))
    misses = plain.get("misses")
    if misses is not None:
        print(
            f"  misses: {misses['found_objects']} of {misses['missed_objects']} missed objects are in picked frames "
            f"({misses['found_boxes']} of {misses['missed_boxes']} boxes)"
        )
