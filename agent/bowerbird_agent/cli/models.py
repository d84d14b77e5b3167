"""`bowerbird-agent tune` and `bench`: what is fastest here, and how long each stage of a frame takes.

In: arguments. Out: tables or JSON, and a choice that is remembered. Measuring is done by `autotune_runner.py` and `bench.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bowerbird_agent.cli.options import EXIT_FAILED, EXIT_OK, add_command, positive
from bowerbird_agent.errors import AgentError, ConfigError
from bowerbird_models.runtime_options import RUNTIMES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bowerbird_agent.config import AgentConfig
    from bowerbird_agent.tuning.autotune import Candidate, Decision
    from bowerbird_agent.tuning.bench import BenchResult, Compared
    from bowerbird_models.package import PackageOnDisk


def add_tune(commands: Any) -> None:
    """The command `tune`."""
    tune = add_command(
        commands,
        "tune",
        "measure which runtime, file and settings are fastest here, and remember them",
        "bowerbird-agent tune --config agent.toml\n  bowerbird-agent tune --model best.onnx --seconds 20 --memory-mb 300",
    )
    tune.add_argument("--model", type=Path, metavar="PATH", help="ONNX file or model package (default: the device's model)")
    tune.add_argument("--seconds", type=positive, default=60, metavar="N", help="time for measuring (default 60)")
    tune.add_argument("--memory-mb", type=positive, metavar="N", help="most memory (default: model.memory_limit_mb)")
    tune.add_argument("--runtime", action="append", choices=RUNTIMES, help="try only this one; may be given again")
    tune.set_defaults(command=_tune)


def add_bench(commands: Any) -> None:
    """The command `bench`."""
    bench = add_command(
        commands,
        "bench",
        "how long each stage of a frame takes here",
        "bowerbird-agent bench --model best.onnx --source street.mp4\n  bowerbird-agent bench --model best.onnx --compare",
    )
    bench.add_argument("--model", type=Path, metavar="PATH", help="ONNX file or model package (default: the device's model)")
    bench.add_argument("--source", default="synthetic:?seed=1&width=1280&height=720", help="film, folder, camera or synthetic:")
    bench.add_argument("--frames", type=positive, default=100, metavar="N", help="frames to measure (default 100)")
    bench.add_argument("--threads", type=positive, default=1, metavar="N", help="threads of the model (default 1)")
    bench.add_argument("--runtime", choices=RUNTIMES, help="what runs it (default onnxruntime-cpu)")
    bench.add_argument("--variant", metavar="ROLE", help="file of a package, like onnx-int8-ort (default: the float file)")
    bench.add_argument("--precision", help="what the runtime computes in (default fp32)")
    bench.add_argument("--compare", action="store_true", help="every runtime and file that there is, side by side")
    bench.set_defaults(command=_bench)


def _tune(arguments: argparse.Namespace) -> int:
    from bowerbird_agent.tuning.autotune import Limits
    from bowerbird_agent.tuning.autotune_runner import Effort
    from bowerbird_agent.tuning.model_config import ModelConfig
    from bowerbird_agent.tuning.model_runtime import ModelRuntimes
    from bowerbird_agent.tuning.model_tuning import ModelTuning

    config = _configuration(arguments)
    with tempfile.TemporaryDirectory(prefix="bowerbird-tune-") as scratch:
        package = _package(arguments, config, Path(scratch))
        state_dir = Path(scratch) if config is None else config.device.state_dir
        runtimes = ModelRuntimes(ModelConfig() if config is None else config.model, state_dir)
        limits = runtimes.limits
        if arguments.memory_mb is not None:
            limits = Limits(float(arguments.memory_mb), limits.accuracy_loss_points)
        decision = ModelTuning(runtimes).tune(
            package,
            effort=Effort(seconds=float(arguments.seconds)),
            limits=limits,
            runtimes=tuple(arguments.runtime or ()),
            progress=_progress(arguments),
            remember=config is not None,
        )
        hardware = str(runtimes.hardware)
    where = None if config is None or decision.chosen is None else str(config.device.state_dir)
    if arguments.json:
        print(json.dumps(_tuned(decision, package, hardware, where), indent=1))
    else:
        _print_decision(decision, package, hardware)
        print(_what_now(decision, config, where))
    return EXIT_OK if decision.chosen is not None else EXIT_FAILED


def _tuned(decision: Decision, package: PackageOnDisk, hardware: str, where: str | None) -> dict[str, Any]:
    return {
        "model": package.digest,
        "hardware": hardware,
        "chosen": None if decision.chosen is None else asdict(decision.chosen),
        "why": decision.why,
        "remembered_in": where,
        "rows": [row.to_plain() for row in decision.rows],
    }


def _print_decision(decision: Decision, package: PackageOnDisk, hardware: str) -> None:
    height, width = package.manifest.input_size_hw
    print(f"model {package.digest[:12]}, {width}x{height}, on {hardware}")
    names = [str(row.candidate) for row in decision.rows]
    wide = max([9, *map(len, names)])
    print(f"  {'candidate':{wide}} {'p50 ms':>8} {'p95 ms':>8} {'CPU ms':>8} {'MB':>6}  why")
    for row, name in zip(decision.rows, names, strict=True):
        m = row.measurement
        mark = "*" if row.candidate == decision.chosen else " "
        figures = f"{m.p50_ms:8.2f} {m.p95_ms:8.2f} {m.cpu_ms:8.2f} {m.peak_rss_mb:6.0f}" if m.frames else f"{'':33}"
        print(f"{mark} {name:{wide}} {figures}  {row.reason}")


def _what_now(decision: Decision, config: AgentConfig | None, where: str | None) -> str:
    if decision.chosen is None:
        return f"{decision.why}; the reasons are above"
    if config is None:
        return "not remembered: there is no configuration; name the device's with --config"
    if config.model.is_pinned:
        return f'remembered, but model.runtime = "{config.model.runtime}" is what runs; set it to "auto" to use this'
    return f"remembered in {where}; a running agent takes it up when it is started again"


def _bench(arguments: argparse.Namespace) -> int:
    from bowerbird_agent.capture.capture import Source
    from bowerbird_agent.tuning.bench import bench
    from bowerbird_agent.tuning.opening import model_path, open_package
    from bowerbird_models.runtimes import open_model

    with tempfile.TemporaryDirectory(prefix="bowerbird-bench-") as scratch:
        if arguments.compare:
            config = _configuration(arguments)
            engine_dir = Path(scratch) if config is None else config.device.state_dir / "engines"
            return _compare(arguments, _package(arguments, config, Path(scratch)), engine_dir)
        path = arguments.model or _device_model(_required(_configuration(arguments), arguments))
        candidate = _candidate(arguments)
        if path.is_dir():
            package = open_package(path, Path(scratch))
            candidate = replace(candidate, role=arguments.variant or package.manifest.reference_role)
            path = model_path(package, candidate.role)
        elif arguments.variant is not None:
            raise AgentError(f"--variant is for packages; {path} is one file")
        with open_model(path, _options(candidate)) as detector:
            result = bench(detector, Source("bench", arguments.source, loop=True), frames=arguments.frames)
    if arguments.json:
        print(json.dumps(asdict(result), indent=1))
        return EXIT_OK
    print(f"{result.runtime}, {arguments.threads} thread(s), {_sizes(result)}, {result.frames} frames")
    print(f"{'stage':10} {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9}")
    for stage, times in result.stages.items():
        print(f"{stage:10} {times.p50_ms:9.2f} {times.p95_ms:9.2f} {times.p99_ms:9.2f}")
    print(f"{result.fps:.1f} frames per second, {result.peak_rss_mb:.0f} MB at most")
    return EXIT_OK


def _compare(arguments: argparse.Namespace, package: PackageOnDisk, engine_dir: Path) -> int:
    from bowerbird_agent.tuning.autotune_candidates import Space, first_candidates
    from bowerbird_agent.tuning.bench import compare
    from bowerbird_agent.tuning.runtime_choice import model_roles
    from bowerbird_models.runtimes import available

    usable = {f.name: f.precisions for f in available() if f.usable and arguments.runtime in {None, f.name}}
    space = Space(model_roles(package.manifest), usable, role=arguments.variant, threads=arguments.threads, spinning=False)
    candidates = [c for c in first_candidates(space) if arguments.precision in {None, c.precision}]
    if not candidates:
        raise AgentError("there is nothing to compare; `bowerbird-agent doctor` says which runtimes are usable")
    lines = compare(
        package, candidates, arguments.source, frames=arguments.frames, engine_dir=engine_dir, progress=_progress(arguments)
    )
    if arguments.json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
    else:
        _print_compared(lines)
    return EXIT_OK if any(line.result is not None for line in lines) else EXIT_FAILED


def _print_compared(lines: Sequence[Compared]) -> None:
    first = next((line.result for line in lines if line.result is not None), None)
    if first is not None:
        print(f"{_sizes(first)}, {first.frames} frames each, in turns; milliseconds, p50 and of the network also p95 and p99")
    wide = max(len(str(line.candidate)) for line in lines)
    heads = ("read", "letterbox", "infer", "p95", "p99", "score", "encode", "fps", "MB")
    print(f"{'':{wide}} " + " ".join(f"{head:>9}" for head in heads) + "  golden")
    for line in lines:
        if line.result is None:
            print(f"{line.candidate!s:{wide}} {line.failure}")
            continue
        stages, result = line.result.stages, line.result
        figures = [stages["read"].p50_ms, stages["letterbox"].p50_ms, stages["infer"].p50_ms, stages["infer"].p95_ms]
        figures += [stages["infer"].p99_ms, stages["score"].p50_ms, stages["encode"].p50_ms, result.fps, result.peak_rss_mb]
        golden = f"{line.golden_cases - line.differing_cases}/{line.golden_cases}"
        print(f"{line.candidate!s:{wide}} " + " ".join(f"{figure:9.2f}" for figure in figures) + f"  {golden}")


def _sizes(result: BenchResult) -> str:
    return f"{result.source_wh[0]}x{result.source_wh[1]} -> {result.network_hw[1]}x{result.network_hw[0]}"


def _candidate(arguments: argparse.Namespace) -> Candidate:
    from bowerbird_agent.tuning.autotune import REFERENCE_RUNTIME, Candidate

    runtime = arguments.runtime or REFERENCE_RUNTIME
    return Candidate(runtime=runtime, precision=arguments.precision or "fp32", threads=arguments.threads)


def _options(candidate: Candidate) -> Any:
    try:
        return candidate.options()
    except ValueError as error:
        raise AgentError(str(error)) from error


def _package(arguments: argparse.Namespace, config: AgentConfig | None, scratch: Path) -> PackageOnDisk:
    """The model that the user named, or the device's."""
    from bowerbird_agent.tuning.opening import open_package

    return open_package(arguments.model or _device_model(_required(config, arguments)), scratch)


def _device_model(config: AgentConfig) -> Path:
    """The package that the agent runs, or the factory model of one that never ran."""
    from bowerbird_agent.updates.model_store import ModelStore

    models = config.device.state_dir / "models"
    slot = ModelStore(models).active() if models.is_dir() else None
    path = slot.dir if slot is not None else config.model.factory
    if path is None:
        raise AgentError("name a model with --model FILE; the device has none yet, and the configuration no model.factory")
    return path


def _configuration(arguments: argparse.Namespace) -> AgentConfig | None:
    """The device's configuration; None where a model was named and there is no such file."""
    from bowerbird_agent.config import read_config

    if arguments.model is not None and not arguments.config.exists():
        return None
    return read_config(arguments.config)


def _required(config: AgentConfig | None, arguments: argparse.Namespace) -> AgentConfig:
    if config is None:
        raise ConfigError(str(arguments.config), ["cannot be read; name the file with --config FILE"])
    return config


def _progress(arguments: argparse.Namespace) -> Any:
    shows = sys.stderr.isatty() and not arguments.json

    def show(text: str) -> None:
        if shows:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    return show
