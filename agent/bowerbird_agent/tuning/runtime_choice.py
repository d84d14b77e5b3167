"""The choices that a device has made, kept over restarts: what to run a model with on this hardware, and why.

In: a file in the state folder. Out: `RuntimeChoice` for a hardware key and a model digest, or for a model of the same shape, whose
choice a retrained model inherits. A file that is damaged or of another release is passed over with a warning: it costs a tuning,
never a start. It measures nothing and does not look whether a choice still loads.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from bowerbird_agent.tuning.autotune import Candidate
from bowerbird_models.durable import write_durably
from bowerbird_models.runtime_options import PRECISIONS

if TYPE_CHECKING:
    from bowerbird_models.manifest import ModelManifest

logger = logging.getLogger(__name__)

FILE_NAME = "runtime-choices.json"
SCHEMA = 1
MAX_CHOICES = 32  # the oldest go: a device sees a few models and a stack that changes now and then
_MAX_FILE_BYTES = 4 * 1024 * 1024
# Two trainings of one architecture give files of the same length up to a date or a name; other architectures do not.
_SAME_LENGTH_SHARE, _SAME_LENGTH_BYTES = 0.001, 4096


@dataclass(frozen=True)
class ModelShape:
    """What a model is apart from its weights.

    Args:
        input_size_hw: of the network, in pixels.
        classes: how many.
        file_bytes: by role, length of each model file.
    """

    input_size_hw: tuple[int, int]
    classes: int
    file_bytes: Mapping[str, int]

    @classmethod
    def of(cls, manifest: ModelManifest) -> ModelShape:
        """The shape of a package's model."""
        return cls(
            manifest.input_size_hw, len(manifest.class_names), {r: manifest.files[r].bytes for r in model_roles(manifest)}
        )

    def is_like(self, other: ModelShape) -> bool:
        """Whether the two are trainings of one architecture, as far as can be told from outside."""
        if (self.input_size_hw, self.classes) != (other.input_size_hw, other.classes):
            return False
        return self.file_bytes.keys() == other.file_bytes.keys() and all(
            abs(mine - other.file_bytes[role]) <= _SAME_LENGTH_BYTES + _SAME_LENGTH_SHARE * mine
            for role, mine in self.file_bytes.items()
        )


@dataclass(frozen=True)
class RuntimeChoice:
    """What a model runs with, and where that comes from.

    Args:
        candidate: the choice.
        why: one sentence for people.
        model_digest: the model that it is for.
        shape: of that model.
        hardware: key of the machine and its software.
        made_at: UTC ISO text.
        peak_rss_mb: memory that it was measured with.
        rows: the table that led to it, as plain values; may be empty.
    """

    candidate: Candidate
    why: str
    model_digest: str
    shape: ModelShape
    hardware: str
    made_at: str
    peak_rss_mb: float = 0.0
    rows: Sequence[Mapping[str, Any]] = field(default=(), compare=False)


class RuntimeChoices:
    """The file. Reading it again costs one small read; writing replaces it in one step.

    Args:
        path: made when something is remembered.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def exact(self, hardware: str, model_digest: str) -> RuntimeChoice | None:
        """The choice made for this very model on this very machine."""
        return next((c for c in self._read() if (c.hardware, c.model_digest) == (hardware, model_digest)), None)

    def inherited(self, hardware: str, shape: ModelShape) -> RuntimeChoice | None:
        """The newest choice made here for a model of the same shape; parity with the new model's golden pictures is not known."""
        return next((c for c in reversed(self._read()) if c.hardware == hardware and c.shape.is_like(shape)), None)

    def stale(self, hardware: str, model_digest: str) -> RuntimeChoice | None:
        """A choice for this model that was made on another machine or with other versions: tuning is due."""
        return next((c for c in reversed(self._read()) if c.model_digest == model_digest and c.hardware != hardware), None)

    def remember(self, choice: RuntimeChoice) -> None:
        """Keep a choice in place of any earlier one for the same model and machine.

        Raises:
            OSError: the disk refused; the earlier file is unharmed.
        """
        key = (choice.hardware, choice.model_digest)
        kept = [c for c in self._read() if (c.hardware, c.model_digest) != key][-(MAX_CHOICES - 1) :]
        self._write([*kept, choice])

    def forget(self, hardware: str, model_digest: str) -> None:
        """Drop the choice for a model; nothing happens when there is none.

        Raises:
            OSError: the disk refused.
        """
        known = self._read()
        kept = [c for c in known if (c.hardware, c.model_digest) != (hardware, model_digest)]
        if len(kept) != len(known):
            self._write(kept)

    def _read(self) -> list[RuntimeChoice]:
        try:
            with self._path.open("rb") as file:
                content = file.read(_MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            logger.warning("%s cannot be read (%s); models run on the default until tuned again", self._path, error.strerror)
            return []
        try:
            plain = json.loads(content)
            if plain["schema"] != SCHEMA:
                raise ValueError(f"schema {plain['schema']!r}, this release knows {SCHEMA}")
            return [_choice(entry) for entry in plain["choices"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            logger.warning("%s is passed over (%s); run `bowerbird-agent tune` to make a new one", self._path, error)
            return []

    def _write(self, choices: Sequence[RuntimeChoice]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        plain = {"schema": SCHEMA, "choices": [asdict(choice) for choice in choices]}
        write_durably(self._path, json.dumps(plain, indent=1).encode())


def _choice(plain: Mapping[str, Any]) -> RuntimeChoice:
    """A choice from plain values; ValueError, KeyError or TypeError for anything else."""
    candidate = Candidate(**plain["candidate"])
    texts = (candidate.role, candidate.runtime, candidate.precision, plain["why"], plain["model_digest"], plain["hardware"])
    flags = (candidate.spinning, candidate.huge_pages)
    if not all(isinstance(text, str) for text in (*texts, plain["made_at"])) or not all(isinstance(f, bool) for f in flags):
        raise TypeError("a value of the wrong type")
    if candidate.precision not in PRECISIONS.get(candidate.runtime, ()):
        raise ValueError(f"unknown runtime {candidate.runtime!r} or precision {candidate.precision!r}")
    if type(plain["candidate"]["threads"]) is not int or not 1 <= candidate.threads <= 64:
        raise ValueError(f"threads is {candidate.threads!r}")
    height, width = plain["shape"]["input_size_hw"]
    shape = ModelShape(
        (int(height), int(width)),
        int(plain["shape"]["classes"]),
        {str(role): int(count) for role, count in plain["shape"]["file_bytes"].items()},
    )
    return RuntimeChoice(
        candidate,
        plain["why"],
        plain["model_digest"],
        shape,
        plain["hardware"],
        plain["made_at"],
        float(plain["peak_rss_mb"]),
        tuple(dict(row) for row in plain["rows"]),
    )


def model_roles(manifest: ModelManifest) -> tuple[str, ...]:
    """Roles of a package's model files, in order."""
    return tuple(sorted(role for role, file in manifest.files.items() if PurePosixPath(file.name).suffix == ".onnx"))


def inherit(choice: RuntimeChoice, manifest: ModelManifest, model_digest: str, *, made_at: str) -> RuntimeChoice:
    """The choice of an earlier model for one of the same shape that has passed parity with it."""
    why = f"as for model {choice.model_digest[:12]} of the same shape; the golden pictures agree"
    return replace(choice, why=why, model_digest=model_digest, shape=ModelShape.of(manifest), made_at=made_at, rows=())
