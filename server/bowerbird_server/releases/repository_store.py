"""The files and keys of the update repository: what is published, how it is replaced in one step, and who signs it.

In: the repository folder, the folder of keys, the time. Out: metadata as it is in force, and new metadata on the disk. What is
published is what `timestamp.json` leads to; it is replaced last, in one step, so that a crash anywhere before leaves the old
state in force. It decides nothing about what is published (`repository.py`).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Signer  # type: ignore[attr-defined]  # as with tuf below
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]  # public names, re-exported without saying so
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from bowerbird_models.durable import write_durably
from bowerbird_models.signing import (
    CONTENT_ROLES,
    ROOT_KEYS,
    ROOT_THRESHOLD,
    SigningError,
    load_key,
    make_key,
    new_snapshot,
    new_timestamp,
    sign,
    utc,
)
from bowerbird_server.errors import EnvironmentFault, NotFound, ServerError

_DAY_S = 86_400.0


@dataclass(frozen=True)
class Lifetimes:
    """How long signatures last, in seconds; `refresh` renews at half of it."""

    root_s: float = 365 * _DAY_S
    targets_s: float = 365 * _DAY_S
    models_automatic_s: float = 7 * _DAY_S
    models_approved_s: float = 90 * _DAY_S
    snapshot_s: float = 7 * _DAY_S
    timestamp_s: float = 1 * _DAY_S
    job_s: float = 30 * _DAY_S


@dataclass(frozen=True)
class Current:
    """The published state: what `timestamp.json` leads to. `content` is the metadata of each role that signs content, by its name."""

    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    content: Mapping[str, Targets]
    files: Mapping[str, tuple[int, bytes]]


class RepositoryStore:
    """One repository folder and its keys.

    Args:
        repository_dir: holds `metadata/`, `targets/` and what waits for a signature.
        keys_dir: key files of mode 0600; `offline/` in it is where `create` puts what should not stay.
        now: UTC seconds since the epoch.
    """

    def __init__(
        self,
        repository_dir: Path,
        keys_dir: Path,
        *,
        now: Callable[[], float] = time.time,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        self.dir = repository_dir
        self.keys_dir = keys_dir
        self.metadata_dir = repository_dir / "metadata"
        self.targets_dir = repository_dir / "targets"
        self._now = now
        self._lifetimes = lifetimes or Lifetimes()

    @property
    def exists(self) -> bool:
        """Whether `create` has finished."""
        return (self.metadata_dir / "timestamp.json").exists()

    # -- files --------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The writer's lock; errors of the disk become messages."""
        try:
            for folder in (self.metadata_dir, self.targets_dir):
                folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)
        except ServerError:
            raise
        except OSError as error:
            raise EnvironmentFault(
                f"cannot write the update repository {self.dir} ({error.strerror}); check space and owner"
            ) from error

    def _metadata_path(self, role: str, version: int) -> Path:
        return self.metadata_dir / f"{version}.{role}.json"

    def _write(self, role: str, version: int, content: bytes) -> None:
        write_durably(self._metadata_path(role, version), content)

    def _load(self, path: Path) -> Metadata[Any]:
        try:
            return Metadata.from_bytes(path.read_bytes())
        except (OSError, RepositoryError) as error:
            raise EnvironmentFault(f"{path} is missing or damaged; restore the repository from a backup") from error

    def _current(self) -> Current:
        if not self.exists:
            raise NotFound(f"there is no update repository in {self.dir}; `bowerbird serve` makes one")
        timestamp: Timestamp = self._load(self.metadata_dir / "timestamp.json").signed
        snapshot: Snapshot = self._load(self._metadata_path("snapshot", timestamp.snapshot_meta.version)).signed
        roles = [role for role in CONTENT_ROLES if f"{role}.json" in snapshot.meta]
        versions = {role: snapshot.meta[f"{role}.json"].version for role in ("targets", *roles)}
        files = {f"{role}.json": (v, self._metadata_path(role, v).read_bytes()) for role, v in versions.items()}
        targets: Targets = self._load(self._metadata_path("targets", versions["targets"])).signed
        content = {role: self._load(self._metadata_path(role, versions[role])).signed for role in roles}
        return Current(timestamp, snapshot, targets, content, files)

    def pending(self, role: str) -> Path:
        """Where metadata of a role waits for its offline key (mode `approved`)."""
        return self.dir / "pending" / f"{role}.json"

    def _pending(self, role: str) -> Metadata[Targets] | None:
        return self._load(self.pending(role)) if self.pending(role).exists() else None

    def _seal(self, files: Mapping[str, tuple[int, bytes]], snapshot_version: int, timestamp_version: int) -> None:
        """Snapshot, then timestamp: the last step puts everything in force."""
        version = snapshot_version + 1
        snapshot = new_snapshot(files, version=version, expires=self._in(self._lifetimes.snapshot_s))
        self._write("snapshot", version, sign(snapshot, [self._signer("snapshot")]))
        self._write_timestamp(version, timestamp_version + 1)

    def _write_timestamp(self, snapshot_version: int, version: int) -> None:
        timestamp = new_timestamp(
            snapshot_version,
            self._metadata_path("snapshot", snapshot_version).read_bytes(),
            version=version,
            expires=self._in(self._lifetimes.timestamp_s),
            signed_at=utc(self._now()),
        )
        write_durably(self.metadata_dir / "timestamp.json", sign(timestamp, [self._signer("timestamp")]))

    def _renew(self, role: str, signed: Targets, life_s: float) -> tuple[int, bytes]:
        signed.version += 1
        signed.expires = self._in(life_s)
        content = sign(Metadata(signed), [self._signer(role)])
        self._write(role, signed.version, content)
        return signed.version, content

    # -- root and keys ------------------------------------------------------------------------------------------------------

    def _root_version(self) -> int:
        versions = [int(path.name.split(".")[0]) for path in self.metadata_dir.glob("*.root.json")]
        if not versions:
            raise NotFound(f"there is no update repository in {self.dir}; `bowerbird serve` makes one")
        return max(versions)

    def _root(self) -> Metadata[Root]:
        return self._load(self._metadata_path("root", self._root_version()))

    def _root_key(self, number: int) -> Path:
        return self._offline(f"root-{number}")

    def _offline(self, name: str) -> Path:
        """Where `create` puts a key that should not stay here."""
        return self.keys_dir / "offline" / f"{name}.pem"

    def _root_signers(self) -> list[Signer]:
        """Enough root keys to sign, or none: they should be elsewhere."""
        paths = [path for number in range(1, ROOT_KEYS + 1) if (path := self._root_key(number)).exists()]
        return [self._load_key(path) for path in paths] if len(paths) >= ROOT_THRESHOLD else []

    def _renew_root(self) -> None:
        root = self._root()
        root.signed.version += 1
        root.signed.expires = self._in(self._lifetimes.root_s)
        self._write("root", root.signed.version, sign(root, self._root_signers()[:ROOT_THRESHOLD]))

    def _signer(self, name: str) -> CryptoSigner:
        return self._load_key(self.keys_dir / f"{name}.pem")

    def _load_key(self, path: Path) -> CryptoSigner:
        try:
            return load_key(path)
        except SigningError as error:
            raise EnvironmentFault(str(error)) from error

    def _load_or_make(self, path: Path) -> CryptoSigner:
        return self._load_key(path) if path.exists() else make_key(path)

    def _in(self, seconds: float) -> Any:
        return utc(self._now() + seconds)

    def _is_old(self, signed: Any, life_s: float) -> bool:
        return bool(signed.expires.timestamp() - self._now() < life_s / 2)


def number_in(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
