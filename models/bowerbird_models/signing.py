"""Who signs what: the TUF roles, the director's signature of jobs, and the key files; rules that both sides share.

In: keys, package manifests, jobs. Out: signed metadata, signed jobs, or an error. Roles (The Update Framework 1.0):

- `root`, threshold 2 of 3: names all other keys;
- `targets`: delegates `models/*/*` to the role `models`, and names the *director* key, which signs the per-device jobs. A stolen
  director can only choose among what `models` has signed, since a job carries no content;
- `models`: the packages, each file a target `models/{model digest}/{file name}`; the manifest's target carries the release
  counter as custom metadata. Mode `automatic`: its key is online and its signature short-lived; `approved`: the key is offline;
- `agents`: the same for releases of the agent, targets `agents/{release digest}/{file name}`, with a key of its own: who may
  sign a model cannot thereby run a program on every device. A repository from before has no such role;
- `snapshot`, `timestamp`: online. The timestamp says when it was signed, which is the device's time floor.

It reads and writes no repository (`repository.py` of the server) and fetches nothing (the device's updater).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

import cbor2
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import CryptoSigner, Key, Signature, Signer  # type: ignore[attr-defined]  # as with tuf below
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]  # public names, re-exported without saying so
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from bowerbird_models.agent_release import AgentManifest
from bowerbird_models.durable import sync_folder, write_durably
from bowerbird_models.errors import ModelError
from bowerbird_models.manifest import MANIFEST, ModelManifest
from bowerbird_models.release_roles import AGENTS_ROLE, MODELS_ROLE
from bowerbird_wire.codec import to_map
from bowerbird_wire.messages import Job

CONTENT_ROLES = (MODELS_ROLE, AGENTS_ROLE)
DIRECTOR_ROLE = "director"
ROOT_KEYS, ROOT_THRESHOLD = 3, 2
SIGNED_AT = "x-bowerbird-signed-at-ms"  # in the timestamp
RELEASE = "release"  # in the custom metadata of a manifest's target
JOB_DEVICE, JOB_EXPIRES = "dev", "exp"  # extra keys of a job that its signature covers
_JOB_DOMAIN = b"bowerbird job v1\x00"


class SigningError(ModelError):
    """A key that cannot be used or a signature that does not hold. `code` is what a device reports."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class PublicKeys:
    """The public half of every role; `agents` is None where the site updates no agents."""

    root: tuple[Key, ...]
    targets: Key
    snapshot: Key
    timestamp: Key
    models: Key
    director: Key
    agents: Key | None = None


# -- key files --------------------------------------------------------------------------------------------------------------


def make_key(path: Path) -> CryptoSigner:
    """A new Ed25519 key in a file of mode 0600.

    Raises:
        FileExistsError: the file is there; a key is never overwritten.
    """
    signer = CryptoSigner.generate_ed25519()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(signer.private_bytes)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return signer


def load_key(path: Path) -> CryptoSigner:
    """The key in a file that only its owner can read.

    Raises:
        SigningError: missing, readable by others, or no private key.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SigningError(
            "no_key", f"cannot read the signing key {path} ({error.strerror}); restore it from your backup"
        ) from error
    with os.fdopen(handle, "rb") as file:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        if mode & 0o077:
            raise SigningError("open_key", f"others can read the signing key {path} (mode {mode:04o}); run: chmod 600 {path}")
        content = file.read(65_536)
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return CryptoSigner(load_pem_private_key(content, None))
    except (ValueError, TypeError) as error:
        raise SigningError("bad_key", f"{path} holds no usable private key; restore it from your backup") from error


# -- metadata ---------------------------------------------------------------------------------------------------------------


def new_root(keys: PublicKeys, *, version: int, expires: datetime) -> Metadata[Root]:
    """Unsigned root metadata that names the keys of the top-level roles; consistent snapshots."""
    root = Root(version=version, expires=expires, consistent_snapshot=True)
    for key in keys.root:
        root.add_key(key, Root.type)
    root.roles[Root.type] = Role([key.keyid for key in keys.root], min(ROOT_THRESHOLD, len(keys.root)))
    root.add_key(keys.targets, Targets.type)
    root.add_key(keys.snapshot, Snapshot.type)
    root.add_key(keys.timestamp, Timestamp.type)
    return Metadata(root)


def new_targets(keys: PublicKeys, *, version: int, expires: datetime) -> Metadata[Targets]:
    """Unsigned top-level targets metadata: no target of its own, only who signs models and who signs jobs."""
    roles = {
        MODELS_ROLE: DelegatedRole(MODELS_ROLE, [keys.models.keyid], 1, terminating=True, paths=[f"{MODELS_ROLE}/*/*"]),
        # No target has such a path, so no client ever asks for this role's metadata: it only publishes the key.
        DIRECTOR_ROLE: DelegatedRole(DIRECTOR_ROLE, [keys.director.keyid], 1, terminating=True, paths=["jobs/*"]),
    }
    delegations = Delegations({key.keyid: key for key in (keys.models, keys.director)}, roles)
    targets = Targets(version=version, expires=expires, delegations=delegations)
    if keys.agents is not None:
        delegate_agents(targets, keys.agents)
    return Metadata(targets)


def delegate_agents(targets: Targets, key: Key) -> None:
    """Let `key`, and no other, sign releases of the agent."""
    delegations = targets.delegations
    if delegations is None or delegations.roles is None:
        raise SigningError("bad_metadata", "the targets metadata delegates nothing; restore the repository from a backup")
    before = delegations.roles.get(AGENTS_ROLE)
    for keyid in () if before is None else tuple(before.keyids):
        targets.revoke_key(keyid, AGENTS_ROLE)
    delegations.keys[key.keyid] = key
    delegations.roles[AGENTS_ROLE] = DelegatedRole(AGENTS_ROLE, [key.keyid], 1, terminating=True, paths=[f"{AGENTS_ROLE}/*/*"])


def delegates_agents(targets: Targets) -> bool:
    """Whether somebody may sign releases of the agent."""
    return targets.delegations is not None and AGENTS_ROLE in (targets.delegations.roles or {})


def new_models(*, version: int, expires: datetime) -> Metadata[Targets]:
    """Unsigned, empty metadata of the role `models`, or of `agents`."""
    return Metadata(Targets(version=version, expires=expires))


def new_snapshot(files: Mapping[str, tuple[int, bytes]], *, version: int, expires: datetime) -> Metadata[Snapshot]:
    """Unsigned snapshot over `files`: name such as `models.json` to its version and bytes."""
    return Metadata(Snapshot(version=version, expires=expires, meta={name: _meta(v, b) for name, (v, b) in files.items()}))


def new_timestamp(
    snapshot_version: int, snapshot: bytes, *, version: int, expires: datetime, signed_at: datetime
) -> Metadata[Timestamp]:
    """Unsigned timestamp over a snapshot's bytes."""
    return Metadata(
        Timestamp(
            version=version,
            expires=expires,
            snapshot_meta=_meta(snapshot_version, snapshot),
            unrecognized_fields={SIGNED_AT: int(signed_at.timestamp() * 1000)},
        )
    )


def _meta(version: int, content: bytes) -> MetaFile:
    return MetaFile(version, len(content), {"sha256": sha256(content).hexdigest()})


def add_package(models: Targets, manifest: ModelManifest, release: int) -> str:
    """List a package's files as targets under a release counter; returns the model digest."""
    content = manifest.to_bytes()
    digest = sha256(content).hexdigest()
    path = target_path(digest, MANIFEST)
    custom = {"custom": {RELEASE: release}}
    models.targets[path] = TargetFile(len(content), {"sha256": digest}, path, custom)
    for file in manifest.files.values():
        path = target_path(digest, file.name)
        models.targets[path] = TargetFile(file.bytes, {"sha256": file.sha256}, path)
    return digest


def add_agent_release(agents: Targets, manifest: AgentManifest, release: int) -> str:
    """List the files of a release of the agent as targets under a release counter; returns the release digest."""
    content = manifest.to_bytes()
    digest = sha256(content).hexdigest()
    path = target_path(digest, MANIFEST, AGENTS_ROLE)
    agents.targets[path] = TargetFile(len(content), {"sha256": digest}, path, {"custom": {RELEASE: release}})
    for file in manifest.files:
        path = target_path(digest, file.name, AGENTS_ROLE)
        agents.targets[path] = TargetFile(file.bytes, {"sha256": file.sha256}, path)
    return digest


def target_path(digest: str, name: str, role: str = MODELS_ROLE) -> str:
    """The target of one file of a package or of a release of the agent."""
    return f"{role}/{digest}/{name}"


def releases(models: Targets) -> dict[str, int]:
    """Release counter by model digest, or by release digest of the agent."""
    out = {}
    for path, target in models.targets.items():
        if path.endswith(f"/{MANIFEST}"):
            out[path.split("/")[1]] = release_of(target)
    return out


def release_of(target: TargetFile) -> int:
    """The release counter of a manifest's target.

    Raises:
        SigningError: it has none.
    """
    release = target.custom.get(RELEASE) if isinstance(target.custom, dict) else None
    if isinstance(release, bool) or not isinstance(release, int) or release < 1:
        raise SigningError("no_release", f"target {target.path} has no release counter; publish the model again")
    return release


def sign(metadata: Metadata[Any], signers: Sequence[Signer]) -> bytes:
    """The metadata with fresh signatures of all `signers`, as the bytes to publish."""
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))


def sign_file(path: Path, key: Path) -> None:
    """Sign metadata that waits in a file, in place; needs nothing but the file and the key, so it works off line.

    Raises:
        SigningError: the key cannot be used, or the file is no metadata.
    """
    signer = load_key(key)
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
    except (OSError, RepositoryError) as error:
        raise SigningError(
            "bad_metadata", f"{path} is no metadata that waits for a signature; publish the model again"
        ) from error
    write_durably(path, sign(metadata, [signer]))


def signed_at_ms(timestamp: Timestamp) -> int:
    """When the timestamp was signed, milliseconds since the epoch; 0 if it does not say."""
    value = timestamp.unrecognized_fields.get(SIGNED_AT, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def director_keys(targets: Targets) -> dict[str, Key]:
    """The keys that may sign jobs, by key id, out of *verified* top-level targets metadata."""
    if targets.delegations is None or targets.delegations.roles is None:
        return {}
    role = targets.delegations.roles.get(DIRECTOR_ROLE)
    keys = targets.delegations.keys
    return {} if role is None else {keyid: keys[keyid] for keyid in role.keyids if keyid in keys}


# -- jobs -------------------------------------------------------------------------------------------------------------------


def sign_job(job: Job, signer: Signer, *, device: str, expires_at: datetime) -> Job:
    """The job bound to one device and a time, signed by the director."""
    bound = replace(
        job,
        signature=b"",
        key_id="",
        extra={**job.extra, JOB_DEVICE: device, JOB_EXPIRES: int(expires_at.timestamp() * 1000)},
    )
    signature = signer.sign(_job_bytes(bound))
    return replace(bound, signature=bytes.fromhex(signature.signature), key_id=signature.keyid)


def verify_job(job: Job, keys: Mapping[str, Key], *, device: str, now_ms: int) -> None:
    """Check that a director key signed this job, for this device, and that it has not expired.

    Args:
        keys: from `director_keys`.
        now_ms: UTC wall time, milliseconds since the epoch.

    Raises:
        SigningError: `job_signature`, `job_device` or `job_expired`.
    """
    key = keys.get(job.key_id)
    if key is None:
        raise SigningError("job_signature", f"job {job.job_id}: its key {job.key_id[:12]!r} is none of the director's")
    try:
        key.verify_signature(Signature(job.key_id, job.signature.hex()), _job_bytes(job))
    except (UnverifiedSignatureError, VerificationError) as error:
        raise SigningError("job_signature", f"job {job.job_id}: the director's signature does not hold") from error
    if job.extra.get(JOB_DEVICE) != device:
        raise SigningError("job_device", f"job {job.job_id} is for device {job.extra.get(JOB_DEVICE)!r}, not for {device!r}")
    expires_ms = job.extra.get(JOB_EXPIRES)
    if not isinstance(expires_ms, int) or expires_ms < now_ms:
        raise SigningError("job_expired", f"job {job.job_id} has expired; the server must offer it again")


def _job_bytes(job: Job) -> bytes:
    bare = replace(job, signature=b"", key_id="")
    return _JOB_DOMAIN + cbor2.dumps({"v": Job.VERSION, **to_map(bare)}, canonical=True)


def utc(now_s: float) -> datetime:
    """Seconds since the epoch as the whole-second UTC time that metadata uses."""
    return datetime.fromtimestamp(int(now_s), tz=timezone.utc)
