"""The TUF repository that devices update from: publishing models and releases of the agent, keeping signatures fresh, signing jobs.

In: verified packages and releases, the signing keys, the time. Out: `metadata/` and `targets/` of the repository folder, and
signed jobs. A crash anywhere leaves the old state in force (`repository_store.py`), and running the same call again finishes
it. Several processes may hold a `Repository` on one folder; a file lock orders their writes. It decides nothing about who gets
what (`rollout.py`), and `repository_files.py` serves it.

`create` makes all keys on this machine, which is right for a demo and a start: move two of the three root keys, and in mode
`approved` the models key and the agents key, to a safe place.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets  # type: ignore[attr-defined]  # public names, re-exported without saying so

from bowerbird_models.agent_release import ReleaseOnDisk, load_release
from bowerbird_models.durable import sync_folder, write_durably
from bowerbird_models.errors import ModelError
from bowerbird_models.package import MANIFEST, PackageOnDisk, load_package
from bowerbird_models.release_roles import AGENTS_ROLE, MODELS_ROLE
from bowerbird_models.signing import (
    CONTENT_ROLES,
    ROOT_KEYS,
    ROOT_THRESHOLD,
    PublicKeys,
    SigningError,
    add_agent_release,
    add_package,
    delegate_agents,
    delegates_agents,
    new_models,
    new_root,
    new_targets,
    releases,
    sign,
    sign_file,
    sign_job,
    target_path,
)
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault, NotFound
from bowerbird_server.releases.repository_store import Current, Lifetimes, RepositoryStore, number_in
from bowerbird_wire.messages import Job

__all__ = ["AwaitingSignature", "Lifetimes", "Repository", "raise_later"]

logger = logging.getLogger(__name__)

Mode = Literal["automatic", "approved"]
_ONLINE = ("targets", "snapshot", "timestamp", "director")
_RAISE = "raise-by"  # a number; there from a restore until versions are raised
_RELEASE_FLOOR = "release-floor"  # a number; releases begin above it
_NAMES = {MODELS_ROLE: "model", AGENTS_ROLE: "agent release"}


def raise_later(repository_dir: Path, by: int) -> None:
    """Have the next `refresh` raise every version by so much, and later releases too.

    A repository from a backup is behind what devices have seen, and they refuse whatever goes backwards.
    """
    if (repository_dir / "metadata" / "timestamp.json").exists():
        write_durably(repository_dir / _RAISE, f"{by}\n".encode())


class AwaitingSignature(Conflict):
    """What is to be published is ready and waits for its offline key (mode `approved`); nothing was published."""

    def __init__(self, digest: str, release: int, path: Path, key: Path, role: str = MODELS_ROLE) -> None:
        command = f"bowerbird {role} sign"
        if key.exists():
            how = f"run `{command} --key {key}`; then move that key to a safe place, away from this machine"
        else:
            how = f"run `{command} --key KEYFILE` here, or take {path} to the machine that holds the key"
        super().__init__(f"{_NAMES[role]} {digest[:12]} (release {release}) awaits a signature: {how}")
        self.digest = digest
        self.release = release


class Repository(RepositoryStore):
    """One repository folder and its keys; arguments as of `RepositoryStore`."""

    # -- what is there ------------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """`automatic` while the models key lies with the online keys."""
        return self.mode_of(MODELS_ROLE)

    def mode_of(self, role: str) -> Mode:
        """The same of any role that signs content."""
        return "automatic" if (self.keys_dir / f"{role}.pem").exists() else "approved"

    def trusted_root(self) -> bytes:
        """The newest root metadata: what a new device is made with.

        Raises:
            NotFound: the repository was not created.
        """
        return self._metadata_path("root", self._root_version()).read_bytes()

    def release_of(self, digest: str, role: str = MODELS_ROLE) -> int | None:
        """The newest release counter of what is published, None while it is not published (or awaits its signature)."""
        return self.releases(role).get(digest)

    def releases(self, role: str = MODELS_ROLE) -> dict[str, int]:
        """Release counter by digest, of everything published under a role."""
        content = self._current().content if self.exists else {}
        return releases(content[role]) if role in content else {}

    def awaiting_signature(self, role: str = MODELS_ROLE) -> dict[str, int]:
        """Release counter by digest, of what waits for the offline key of a role."""
        waiting = self._pending(role)
        if waiting is None or not self.exists:
            return {}
        published = self.releases(role)
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
            content = {
                role: self._load_or_make((self.keys_dir if mode == "automatic" else offline) / f"{role}.pem")
                for role in CONTENT_ROLES
            }
            root_signers = [self._load_or_make(self._root_key(number)) for number in range(1, ROOT_KEYS + 1)]
            online = {name: self._load_or_make(self.keys_dir / f"{name}.pem") for name in _ONLINE}
            keys = PublicKeys(
                tuple(signer.public_key for signer in root_signers),
                models=content[MODELS_ROLE].public_key,
                agents=content[AGENTS_ROLE].public_key,
                **{name: signer.public_key for name, signer in online.items()},
            )
            life = self._lifetimes
            root = sign(new_root(keys, version=1, expires=self._in(life.root_s)), root_signers[:ROOT_THRESHOLD])
            targets = sign(new_targets(keys, version=1, expires=self._in(life.targets_s)), [online["targets"]])
            self._write("root", 1, root)
            self._write("targets", 1, targets)
            files = {"targets.json": (1, targets)}
            for role, signer in content.items():
                files[f"{role}.json"] = (
                    1,
                    sign(new_models(version=1, expires=self._in(self._content_life(mode))), [signer]),
                )
                self._write(role, *files[f"{role}.json"])
            self._seal(files, 0, 0)
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
            names = {MANIFEST: package.digest, **{file.name: file.sha256 for file in package.manifest.files.values()}}
            return self._publish(
                MODELS_ROLE,
                package.digest,
                names,
                package.dir,
                lambda models, release: add_package(models, package.manifest, release),
                again=again,
            )

    def publish_agent(self, release: ReleaseOnDisk, *, again: bool = False) -> int:
        """The same of a release of the agent, under the role `agents`; a repository from before gets that role first.

        Raises:
            AwaitingSignature: mode `approved`; `sign` finishes it.
            BadInput: the release does not verify.
            NotFound: the repository was not created.
            EnvironmentFault: the role has to be made, and the targets key is not here.
        """
        try:
            release = load_release(release.dir, digest=release.digest)
        except ModelError as error:
            raise BadInput(str(error)) from error
        with self._writing():
            self._delegate_agents()
            names = {MANIFEST: release.digest, **{file.name: file.sha256 for file in release.manifest.files}}
            return self._publish(
                AGENTS_ROLE,
                release.digest,
                names,
                release.dir,
                lambda agents, counter: add_agent_release(agents, release.manifest, counter),
                again=again,
            )

    def _publish(
        self,
        role: str,
        digest: str,
        names: Mapping[str, str],
        folder: Path,
        add: Callable[[Targets, int], object],
        *,
        again: bool,
    ) -> int:
        current = self._current()
        content = current.content[role]
        known = releases(content)
        if digest in known and not again:
            return known[digest]
        waiting = self._pending(role) if self.mode_of(role) == "approved" else None
        before = content.version
        if waiting is not None and waiting.signed.version > before:
            content = waiting.signed
            queued = releases(content)
            if queued.get(digest, 0) > known.get(digest, 0):
                raise AwaitingSignature(digest, queued[digest], self.pending(role), self._offline(role), role)
        release = max([number_in(self.dir / _RELEASE_FLOOR), *known.values(), *releases(content).values()]) + 1
        self._copy_targets(role, digest, names, folder)
        add(content, release)
        content.version = max(content.version, before + 1)
        content.expires = self._in(self._content_life(self.mode_of(role)))
        if self.mode_of(role) == "approved":
            self.pending(role).parent.mkdir(exist_ok=True)
            write_durably(self.pending(role), Metadata(content).to_bytes())
            raise AwaitingSignature(digest, release, self.pending(role), self._offline(role), role)
        self._publish_content(current, role, sign(Metadata(content), [self._signer(role)]), content.version)
        logger.info("published %s %s as release %s", _NAMES[role], digest[:12], release)
        return release

    def _delegate_agents(self) -> None:
        """A repository that was made before there were releases of the agent gets their role, with a key of its own."""
        current = self._current()
        if delegates_agents(current.targets):
            return
        mode = self.mode
        where = self.keys_dir if mode == "automatic" else self.keys_dir / "offline"
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        signer = self._load_or_make(where / f"{AGENTS_ROLE}.pem")
        targets = current.targets
        delegate_agents(targets, signer.public_key)
        targets.version += 1
        targets.expires = self._in(self._lifetimes.targets_s)
        signed = sign(Metadata(targets), [self._signer("targets")])
        self._write("targets", targets.version, signed)
        agents = sign(new_models(version=1, expires=self._in(self._content_life(mode))), [signer])
        self._write(AGENTS_ROLE, 1, agents)
        files = {**current.files, "targets.json": (targets.version, signed), f"{AGENTS_ROLE}.json": (1, agents)}
        self._seal(files, current.snapshot.version, current.timestamp.version)
        logger.info("releases of the agent are signed by %s from now on", where / f"{AGENTS_ROLE}.pem")

    def sign(self, key: Path, role: str = MODELS_ROLE) -> dict[str, int]:
        """Sign what awaits the offline key of a role and publish it; returns release by digest.

        Raises:
            NotFound: nothing waits.
            EnvironmentFault: the key cannot be used, or is another one.
        """
        self._waiting(role)
        try:
            sign_file(self.pending(role), key)
        except SigningError as error:
            raise EnvironmentFault(str(error)) from error
        return self.finish(role)

    def finish(self, role: str = MODELS_ROLE) -> dict[str, int]:
        """Publish what was signed elsewhere; returns release by digest.

        Raises:
            NotFound: nothing waits.
            Conflict: it is not signed by the role's key.
        """
        with self._writing():
            waiting = self._waiting(role)
            current = self._current()
            path = self.pending(role)
            content = path.read_bytes()
            done = self.awaiting_signature(role)
            if waiting.signed.version > current.content[role].version:
                try:
                    current.targets.verify_delegate(role, waiting.signed_bytes, waiting.signatures)
                except (RepositoryError, ValueError) as error:
                    raise Conflict(f"{path} is not signed by the {role} key; sign it with that key") from error
                self._publish_content(current, role, content, waiting.signed.version)
            path.unlink()
            sync_folder(path.parent)
        return done

    def _waiting(self, role: str) -> Metadata[Targets]:
        waiting = self._pending(role)
        if waiting is None:
            raise NotFound(f"no {_NAMES[role]} awaits a signature; `bowerbird {role} publish` makes one ready")
        return waiting

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
            for role, content in current.content.items():
                if raised or self._is_old(content, self._content_life(self.mode_of(role))):
                    changed = self._renew_content(role, content, files, raised=raised) or changed
            if self._is_old(self._root().signed, life.root_s) and self._root_signers():
                self._renew_root()
            if changed:
                self._seal(files, current.snapshot.version, current.timestamp.version)
                (self.dir / _RAISE).unlink(missing_ok=True)
            elif self._is_old(current.timestamp, life.timestamp_s):
                self._write_timestamp(current.snapshot.version, current.timestamp.version + 1)
                changed = True
        return changed

    def _renew_content(self, role: str, content: Targets, files: dict[str, tuple[int, bytes]], *, raised: bool) -> bool:
        """A role's metadata under its next version: signed and put into `files`, or made ready for the offline key."""
        mode = self.mode_of(role)
        if mode == "automatic":
            files[f"{role}.json"] = self._renew(role, content, self._content_life(mode))
            return True
        if raised or self._pending(role) is None:
            logger.warning("the %s signature ends %s; run `bowerbird %s sign`", role, content.expires, role)
            waiting = self._pending(role)
            ready = content if waiting is None else waiting.signed
            ready.version = content.version + 1
            ready.expires = self._in(self._content_life(mode))
            self.pending(role).parent.mkdir(exist_ok=True)
            write_durably(self.pending(role), Metadata(ready).to_bytes())
        return False

    def _raise(self, current: Current) -> bool:
        """Versions raised in memory, as a restore asked for; they are written with the signatures that follow."""
        by = number_in(self.dir / _RAISE)
        if by:
            floor = max([0, *(release for content in current.content.values() for release in releases(content).values())]) + by
            write_durably(self.dir / _RELEASE_FLOOR, f"{floor}\n".encode())
            for signed in (current.timestamp, current.snapshot, current.targets, *current.content.values()):
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

    def _copy_targets(self, role: str, digest: str, names: Mapping[str, str], source: Path) -> None:
        """Put files where consistent snapshots have them: `targets/{role}/{digest}/{sha256}.{name}`."""
        folder = self.targets_dir / target_path(digest, "", role)
        folder.mkdir(parents=True, exist_ok=True)
        for name, sha256 in names.items():
            content = (source / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise BadInput(f"{source / name} changed while it was published; build it again")
            write_durably(folder / f"{sha256}.{name}", content)
        sync_folder(self.targets_dir / role)
        sync_folder(self.targets_dir)

    def _publish_content(self, current: Current, role: str, content: bytes, version: int) -> None:
        self._write(role, version, content)
        files = {**current.files, f"{role}.json": (version, content)}
        self._seal(files, current.snapshot.version, current.timestamp.version)

    def _content_life(self, mode: Mode) -> float:
        return self._lifetimes.models_automatic_s if mode == "automatic" else self._lifetimes.models_approved_s
