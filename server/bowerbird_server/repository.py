"""The TUF repository that devices update from: publishing packages, keeping signatures fresh, signing jobs.

In: verified packages, the signing keys, the time. Out: `metadata/` and `targets/` of the repository folder, and signed jobs. What
is published is what `timestamp.json` leads to; it is replaced last, in one step, so that a crash anywhere before leaves the
old state in force and running the same call again finishes it. Several processes may hold a `Repository` on one folder; a file
lock orders their writes. It decides nothing about who gets a model (`rollout.py`), and `repository_files.py` serves it.

`create` makes all keys on this machine, which is right for a demo and a start: move two of the three root keys, and in mode
`approved` the models key, to a safe place.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from securesystemslib.signer import CryptoSigner, Signer  # type: ignore[attr-defined]  # as with tuf below
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]  # public names, re-exported without saying so
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from bowerbird_models.durable import sync_folder, write_durably
from bowerbird_models.errors import ModelError
from bowerbird_models.package import MANIFEST, PackageOnDisk, load_package
from bowerbird_models.signing import (
    MODELS_ROLE,
    ROOT_KEYS,
    ROOT_THRESHOLD,
    PublicKeys,
    SigningError,
    add_package,
    load_key,
    make_key,
    new_models,
    new_root,
    new_snapshot,
    new_targets,
    new_timestamp,
    releases,
    sign,
    sign_file,
    sign_job,
    target_path,
    utc,
)
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault, NotFound, ServerError
from bowerbird_wire.messages import Job

logger = logging.getLogger(__name__)

Mode = Literal["automatic", "approved"]
_DAY_S = 86_400.0
_ONLINE = ("targets", "snapshot", "timestamp", "director")
_RAISE = "raise-by"  # a number; there from a restore until versions are raised
_RELEASE_FLOOR = "release-floor"  # a number; releases begin above it


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


def raise_later(repository_dir: Path, by: int) -> None:
    """Have the next `refresh` raise every version by so much, and later releases too.

    A repository from a backup is behind what devices have seen, and they refuse whatever goes backwards.
    """
    if (repository_dir / "metadata" / "timestamp.json").exists():
        write_durably(repository_dir / _RAISE, f"{by}\n".encode())


class AwaitingSignature(Conflict):
    """The package is ready and waits for the offline models key (mode `approved`); nothing was published."""

    def __init__(self, digest: str, release: int, path: Path, key: Path) -> None:
        if key.exists():
            how = f"run `bowerbird models sign --key {key}`; then move that key to a safe place, away from this machine"
        else:
            how = f"run `bowerbird models sign --key KEYFILE` here, or take {path} to the machine that holds the key"
        super().__init__(f"model {digest[:12]} (release {release}) awaits a signature: {how}")
        self.digest = digest
        self.release = release


@dataclass(frozen=True)
class _Current:
    """The published state: what `timestamp.json` leads to."""

    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    models: Targets
    files: Mapping[str, tuple[int, bytes]]


class Repository:
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
        self.pending = repository_dir / "pending" / f"{MODELS_ROLE}.json"
        self._now = now
        self._lifetimes = lifetimes or Lifetimes()

    # -- what is there ------------------------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether `create` has finished."""
        return (self.metadata_dir / "timestamp.json").exists()

    @property
    def mode(self) -> Mode:
        """`automatic` while the models key lies with the online keys."""
        return "automatic" if (self.keys_dir / "models.pem").exists() else "approved"

    def trusted_root(self) -> bytes:
        """The newest root metadata: what a new device is made with.

        Raises:
            NotFound: the repository was not created.
        """
        return self._metadata_path("root", self._root_version()).read_bytes()

    def release_of(self, digest: str) -> int | None:
        """The newest release counter of a published model, None while it is not published (or awaits its signature)."""
        return self.releases().get(digest)

    def releases(self) -> dict[str, int]:
        """Release counter by model digest, of everything published."""
        return releases(self._current().models) if self.exists else {}

    def awaiting_signature(self) -> dict[str, int]:
        """Release counter by model digest, of what waits for the offline models key."""
        waiting = self._pending()
        if waiting is None or not self.exists:
            return {}
        published = self.releases()
        return {digest: release for digest, release in releases(waiting.signed).items() if published.get(digest) != release}

    # -- making and publishing ----------------------------------------------------------------------------------------------

    def create(self, mode: Mode = "automatic") -> None:
        """Make keys and the first metadata; does nothing where the repository exists, finishes what was cut short.

        Raises:
            EnvironmentFault: the folders cannot be written, or a key is readable by others.
        """
        with self._writing():
            if self.exists:
                return
            offline = self.keys_dir / "offline"
            for folder in (self.keys_dir, offline):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            models_path = (self.keys_dir if mode == "automatic" else offline) / "models.pem"
            root_signers = [self._load_or_make(self._root_key(number)) for number in range(1, ROOT_KEYS + 1)]
            online = {name: self._load_or_make(self.keys_dir / f"{name}.pem") for name in _ONLINE}
            models_signer = self._load_or_make(models_path)
            keys = PublicKeys(
                tuple(signer.public_key for signer in root_signers),
                models=models_signer.public_key,
                **{name: signer.public_key for name, signer in online.items()},
            )
            life = self._lifetimes
            root = sign(new_root(keys, version=1, expires=self._in(life.root_s)), root_signers[:ROOT_THRESHOLD])
            targets = sign(new_targets(keys, version=1, expires=self._in(life.targets_s)), [online["targets"]])
            models = sign(new_models(version=1, expires=self._in(self._models_life(mode))), [models_signer])
            self._write("root", 1, root)
            self._write("targets", 1, targets)
            self._write(MODELS_ROLE, 1, models)
            self._seal({"targets.json": (1, targets), f"{MODELS_ROLE}.json": (1, models)}, 0, 0)
        logger.info("made the update repository in %s, mode %s; all its keys are in %s", self.dir, mode, self.keys_dir)

    def publish(self, package: PackageOnDisk, *, again: bool = False) -> int:
        """Publish a package and return its release counter; a digest that is published keeps the one it has.

        Args:
            package: verified once more here.
            again: give published content a new release counter, which is how old content is rolled back to.

        Raises:
            AwaitingSignature: mode `approved`; `sign` finishes it.
            BadInput: the package does not verify.
            NotFound: the repository was not created.
        """
        try:
            package = load_package(package.dir, digest=package.digest)
        except ModelError as error:
            raise BadInput(str(error)) from error
        with self._writing():
            current = self._current()
            known = releases(current.models)
            if package.digest in known and not again:
                return known[package.digest]
            waiting = self._pending() if self.mode == "approved" else None
            models = current.models
            if waiting is not None and waiting.signed.version > current.models.version:
                models = waiting.signed
                queued = releases(models)
                if queued.get(package.digest, 0) > known.get(package.digest, 0):
                    raise AwaitingSignature(package.digest, queued[package.digest], self.pending, self._offline("models"))
            release = max([_number(self.dir / _RELEASE_FLOOR), *known.values(), *releases(models).values()]) + 1
            self._copy_targets(package)
            add_package(models, package.manifest, release)
            models.version = max(models.version, current.models.version + 1)
            models.expires = self._in(self._models_life(self.mode))
            if self.mode == "approved":
                self.pending.parent.mkdir(exist_ok=True)
                write_durably(self.pending, Metadata(models).to_bytes())
                raise AwaitingSignature(package.digest, release, self.pending, self._offline("models"))
            self._publish_models(current, sign(Metadata(models), [self._signer("models")]), models.version)
        logger.info("published model %s as release %s", package.digest[:12], release)
        return release

    def sign(self, key: Path) -> dict[str, int]:
        """Sign what awaits the models key and publish it; returns release by digest.

        Raises:
            NotFound: nothing waits.
            EnvironmentFault: the key cannot be used, or is not the models key.
        """
        if self._pending() is None:
            raise NotFound("no model awaits a signature; `bowerbird models publish` makes one ready")
        try:
            sign_file(self.pending, key)
        except SigningError as error:
            raise EnvironmentFault(str(error)) from error
        return self.finish()

    def finish(self) -> dict[str, int]:
        """Publish what was signed elsewhere; returns release by digest.

        Raises:
            NotFound: nothing waits.
            Conflict: it is not signed by the models key.
        """
        with self._writing():
            waiting = self._pending()
            if waiting is None:
                raise NotFound("no model awaits a signature; `bowerbird models publish` makes one ready")
            current = self._current()
            content = self.pending.read_bytes()
            done = self.awaiting_signature()
            if waiting.signed.version > current.models.version:
                try:
                    current.targets.verify_delegate(MODELS_ROLE, waiting.signed_bytes, waiting.signatures)
                except (RepositoryError, ValueError) as error:
                    raise Conflict(f"{self.pending} is not signed by the models key; sign it with that key") from error
                self._publish_models(current, content, waiting.signed.version)
            self.pending.unlink()
            sync_folder(self.pending.parent)
        return done

    def refresh(self) -> bool:
        """Renew every signature that has lived half its life and whose key is here; returns whether anything changed.

        Call it every few minutes. Raises NotFound where the repository was not created.
        """
        with self._writing():
            current = self._current()
            life = self._lifetimes
            files = dict(current.files)
            raised = self._raise(current)
            changed = raised or self._is_old(current.snapshot, life.snapshot_s)
            if (raised or self._is_old(current.targets, life.targets_s)) and (self.keys_dir / "targets.pem").exists():
                files["targets.json"] = self._renew("targets", current.targets, life.targets_s)
                changed = True
            if raised or self._is_old(current.models, self._models_life(self.mode)):
                if self.mode == "automatic":
                    files[f"{MODELS_ROLE}.json"] = self._renew(MODELS_ROLE, current.models, life.models_automatic_s)
                    changed = True
                elif raised or self._pending() is None:
                    logger.warning("the models signature ends %s; run `bowerbird models sign`", current.models.expires)
                    waiting = self._pending()
                    models = current.models if waiting is None else waiting.signed
                    models.version = current.models.version + 1
                    models.expires = self._in(life.models_approved_s)
                    self.pending.parent.mkdir(exist_ok=True)
                    write_durably(self.pending, Metadata(models).to_bytes())
            if self._is_old(self._root().signed, life.root_s) and self._root_signers():
                self._renew_root()
            if changed:
                self._seal(files, current.snapshot.version, current.timestamp.version)
                (self.dir / _RAISE).unlink(missing_ok=True)
            elif self._is_old(current.timestamp, life.timestamp_s):
                self._write_timestamp(current.snapshot.version, current.timestamp.version + 1)
                changed = True
        return changed

    def _raise(self, current: _Current) -> bool:
        """Versions raised in memory, as a restore asked for; they are written with the signatures that follow."""
        by = _number(self.dir / _RAISE)
        if by:
            floor = max([0, *releases(current.models).values()]) + by
            write_durably(self.dir / _RELEASE_FLOOR, f"{floor}\n".encode())
            for signed in (current.timestamp, current.snapshot, current.targets, current.models):
                signed.version += by
            logger.info("versions of the update repository are raised by %s; releases go on from %s", by, floor + 1)
        return by > 0

    def sign_job(self, job: Job, *, device: str) -> Job:
        """The job bound to one device and signed by the director key.

        Raises:
            EnvironmentFault: the key cannot be used.
        """
        return sign_job(job, self._signer("director"), device=device, expires_at=self._in(self._lifetimes.job_s))

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

    def _current(self) -> _Current:
        if not self.exists:
            raise NotFound(f"there is no update repository in {self.dir}; `bowerbird serve` makes one")
        timestamp: Timestamp = self._load(self.metadata_dir / "timestamp.json").signed
        snapshot: Snapshot = self._load(self._metadata_path("snapshot", timestamp.snapshot_meta.version)).signed
        versions = {role: snapshot.meta[f"{role}.json"].version for role in ("targets", MODELS_ROLE)}
        files = {f"{role}.json": (v, self._metadata_path(role, v).read_bytes()) for role, v in versions.items()}
        targets: Targets = self._load(self._metadata_path("targets", versions["targets"])).signed
        models: Targets = self._load(self._metadata_path(MODELS_ROLE, versions[MODELS_ROLE])).signed
        return _Current(timestamp, snapshot, targets, models, files)

    def _pending(self) -> Metadata[Targets] | None:
        return self._load(self.pending) if self.pending.exists() else None

    def _copy_targets(self, package: PackageOnDisk) -> None:
        """Put the package's files where consistent snapshots have them: `targets/models/{digest}/{sha256}.{name}`."""
        content = (package.dir / MANIFEST).read_bytes()
        wanted = {MANIFEST: package.digest, **{file.name: file.sha256 for file in package.manifest.files.values()}}
        for name, digest in wanted.items():
            folder = self.targets_dir / target_path(package.digest, "")
            folder.mkdir(parents=True, exist_ok=True)
            content = (package.dir / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise BadInput(f"{package.dir / name} changed while it was published; build the package again")
            write_durably(folder / f"{digest}.{name}", content)
        sync_folder(self.targets_dir / MODELS_ROLE)
        sync_folder(self.targets_dir)

    def _publish_models(self, current: _Current, content: bytes, version: int) -> None:
        self._write(MODELS_ROLE, version, content)
        files = {**current.files, f"{MODELS_ROLE}.json": (version, content)}
        self._seal(files, current.snapshot.version, current.timestamp.version)

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

    def _models_life(self, mode: Mode) -> float:
        return self._lifetimes.models_automatic_s if mode == "automatic" else self._lifetimes.models_approved_s

    def _in(self, seconds: float) -> Any:
        return utc(self._now() + seconds)

    def _is_old(self, signed: Any, life_s: float) -> bool:
        return bool(signed.expires.timestamp() - self._now() < life_s / 2)


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
