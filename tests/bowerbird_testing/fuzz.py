"""Fuzzes the parsers of `fuzz_targets.py`: by atheris where it is installed, which follows coverage, else by changes of the corpus.

In: `python -m bowerbird_testing.fuzz [--seconds N | --runs N] [--keep FOLDER] [TARGET...]`, a process for each target. Out: exit code
1, and the input beside what it raised when a parser breaks its promise. The corpus in `tests/fuzz/corpus` is read, never written;
`--keep` names a folder that grows with whatever reached new code. It does not judge whether a parser is slow, but for one of 10 s.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from bowerbird_testing.fuzz_targets import Target, targets

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
MAX_BYTES = 4096
_INSTRUMENTED = (
    *(
        "bowerbird_wire.codec",
        "bowerbird_wire.claim",
        "bowerbird_wire.bundle",
        "bowerbird_models.metadata",
        "bowerbird_models.onnx_file",
    ),
    *("bowerbird_server.ingest.arrival", "bowerbird_server.identity.requests", "bowerbird_server.ingest.image_header"),
    *("bowerbird_server.labelling.coco_files", "bowerbird_server.labelling.yolo_files"),
)
_SPECIAL = (
    b"\x00",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"[" * 64,
    b"{",
    b"NaN",
    b"1e999",
    b"\xed\xa0\x80",
    b"-1",
    b"9" * 40,
    b"\n",
    b"\xd9\x00",
)


def corpus(name: str) -> list[bytes]:
    """The kept inputs of a target, in the order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def changed(data: bytes, others: list[bytes], source: random.Random) -> bytes:
    """A seeded change or three: a bit, a cut, a splice, a repeat, a number that is too large."""
    out = bytearray(data)
    for _ in range(source.randint(1, 3)):
        at = source.randrange(len(out) + 1)
        kind = source.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << source.randrange(8)
        elif kind == 1:
            del out[at : at + source.randint(1, 16)]
        elif kind == 2:
            other = source.choice(others)
            begin = source.randrange(len(other) + 1)
            out[at:at] = other[begin : begin + source.randint(1, 64)]
        elif kind == 3:
            out[at:at] = out[at : at + source.randint(1, 64)] * source.randint(1, 8)
        elif kind == 4:
            out[at:at] = source.choice(_SPECIAL)
        elif at < len(out):
            out[at] = source.randrange(256)
    return bytes(out[:MAX_BYTES])


def by_changes(name: str, target: Target, runs: int, seed: int = 1) -> int:
    """Try the corpus and `runs` changes of it; returns how many were accepted.

    Raises:
        BaseException: whatever the parser did not promise, with the input in a note.
    """
    source = random.Random(f"{name} {seed}")
    kept = corpus(name)
    accepted = 0
    for number in range(len(kept) + runs):
        data = kept[number] if number < len(kept) else changed(source.choice(kept), kept, source)
        try:
            accepted += target.try_bytes(data)
        except BaseException as error:
            if sys.version_info >= (3, 11):
                error.add_note(f"target {name}, input (base64): {base64.b64encode(data).decode()}")
            raise
    return accepted


def _child(name: str, runs: int, seconds: int, keep: Path | None) -> None:
    """One target in this process, under atheris; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["bowerbird_wire", "bowerbird_models", "bowerbird_server"]):
        for module in _INSTRUMENTED:
            importlib.import_module(module)
        target = targets()[name]

    def one(data: bytes) -> None:
        target.try_bytes(data)

    with tempfile.TemporaryDirectory() as scratch:
        grown = keep / name if keep else Path(scratch) / "grown"
        grown.mkdir(parents=True, exist_ok=True)
        limits = [f"-max_total_time={seconds}"] if seconds else [f"-runs={runs}"]
        arguments = [*limits, "-seed=1", "-timeout=10", "-rss_limit_mb=2048", f"-max_len={MAX_BYTES}", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *arguments, f"-artifact_prefix={grown}/", str(grown), str(CORPUS / name)], one)
        atheris.Fuzz()


def run_child(name: str, *, runs: int = 0, seconds: int = 0, keep: Path | None = None) -> subprocess.CompletedProcess[str]:
    """One target in a process of its own."""
    argv = [sys.executable, "-m", "bowerbird_testing.fuzz", "--child", name, "--runs", str(runs), "--seconds", str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [*argv, *(["--keep", str(keep)] if keep else [])], capture_output=True, text=True, env=environment, check=False
    )


def has_atheris() -> bool:
    """Whether coverage can be followed here; atheris has wheels for x86-64 and CPython 3.11 to 3.13."""
    return importlib.util.find_spec("atheris") is not None


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="TARGET", help="all of them when none is named")
    parser.add_argument("--seconds", type=int, default=0, help="for each target")
    parser.add_argument("--runs", type=int, default=20_000, help="for each target, without --seconds")
    parser.add_argument("--keep", type=Path, help="a folder for inputs that reached new code")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.child, options.runs, options.seconds, options.keep)
        return 0
    failed = []
    for name, target in targets().items():
        if options.names and name not in options.names:
            continue
        if not has_atheris():
            try:
                print(f"{name}: {by_changes(name, target, options.runs)} accepted; without atheris coverage is not followed")
            except Exception:
                traceback.print_exc()
                failed.append(name)
            continue
        done = run_child(name, runs=options.runs, seconds=options.seconds, keep=options.keep)
        print(f"{name}: {'no finding' if done.returncode == 0 else 'FINDING'}", flush=True)
        if done.returncode != 0:
            print(done.stderr[-6000:])
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
