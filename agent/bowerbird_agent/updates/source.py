"""What a device believes about releases, and the files it fetches on that belief: python-tuf's client with our floors around it.

In: a job, the root metadata that the device was made with, the fetcher. Out: a folder whose every byte was listed by signed
metadata, of a model or of a release of the agent, each under the role whose key alone may sign it, or `UpdateRefused` with the
code that goes into the report. TUF's own rules (signatures, thresholds, expiry, versions) are python-tuf's; here are the
director's signature, the release counter, the release and time floors, and space.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import Key  # type: ignore[attr-defined]  # as with tuf below
from tuf.api.exceptions import (
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
)
from tuf.api.metadata import (  # type: ignore[attr-defined]  # public names, re-exported without saying so
    Metadata,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.ngclient.updater import Updater

from bowerbird_agent.errors import UpdateRefused
from bowerbird_agent.updates.fetcher import BlockFetcher
from bowerbird_agent.updates.jobs import is_of
from bowerbird_agent.updates.state import FLOOR_OF, TIME_FLOOR_MS, UpdateState
from bowerbird_agent.updates.updated import Updated
from bowerbird_models.durable import sync_file, sync_folder
from bowerbird_models.manifest import MANIFEST, MAX_MANIFEST_BYTES, PackageError
from bowerbird_models.signing import SigningError, director_keys, release_of, signed_at_ms, target_path, verify_job
from bowerbird_wire.messages import Job

logger = logging.getLogger(__name__)

CLOCK_SLACK_MS = 600_000  # how far the device's clock may be behind the server's
MIN_FREE_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Trust:
    """Fresh, verified metadata and the release that a job names in it."""

    updater: Updater
    manifest_target: TargetFile
    release: int


class UpdateSource:
    """The signed repository as one device sees it.

    Args:
        root: TUF root metadata that the device was made with.
        folder: for TUF's cache and files under way; losing it costs a download, never safety.
        device: name that jobs must be bound to.
        wall_ms: UTC milliseconds since the epoch.
    """

    def __init__(
        self,
        root: bytes,
        folder: Path,
        fetcher: BlockFetcher,
        state: UpdateState,
        *,
        device: str,
        wall_ms: Callable[[], int],
    ) -> None:
        self._root = root
        self._metadata = folder / "tuf"
        self._incoming = folder / "incoming"
        self._fetcher = fetcher
        self._state = state
        self._device = device
        self._wall_ms = wall_ms

    @property
    def time_floor_ms(self) -> int:
        """Wall time below which the device's clock is believed to be wrong."""
        return max(0, self._state.floor(TIME_FLOOR_MS) - CLOCK_SLACK_MS)

    def trust(self, job: Job, what: Updated) -> Trust:
        """Refresh the metadata and check the job against it.

        Raises:
            UpdateRefused: job or metadata are not to be trusted.
            DownloadError: the link or the server did not answer.
        """
        if self._wall_ms() < self.time_floor_ms:
            raise UpdateRefused("clock", "this device's clock is behind the newest metadata that it has trusted; set the clock")
        try:
            updater = self._refresh()
            verify_job(job, self._director_keys(), device=self._device, now_ms=self._wall_ms())
            if not is_of(job, what.subject):
                raise UpdateRefused(
                    "job_subject", f"job {job.job_id} is not of the {what.subject.value}; somebody sent it astray"
                )
            target = updater.get_targetinfo(target_path(job.model_digest, MANIFEST, what.role))
            if target is None or target.hashes.get("sha256") != job.model_digest:
                raise UpdateRefused(
                    f"unknown_{what.subject.value}", f"no signed metadata lists {what.subject.value} {job.model_digest[:12]}"
                )
            release = release_of(target)
        except ExpiredMetadataError as error:
            raise UpdateRefused(
                "metadata_expired", f"the server's signatures have expired ({error}); refresh them there"
            ) from error
        except (LengthOrHashMismatchError, DownloadLengthMismatchError) as error:
            # One that is too long will not be shorter at the next try, and each try costs a block of the link.
            raise UpdateRefused("metadata", f"metadata does not match what was signed ({error})") from error
        except RepositoryError as error:
            raise UpdateRefused("metadata", f"the server's metadata does not verify ({error})") from error
        except SigningError as error:
            raise UpdateRefused(error.code, str(error)) from error
        if release != job.release:
            raise UpdateRefused("release_mismatch", f"the job says release {job.release}, the signed metadata {release}")
        floor = self._state.floor(FLOOR_OF[what.subject])
        if release < floor:
            raise UpdateRefused("release_floor", f"release {release} is older than release {floor}, which ran here")
        return Trust(updater, target, release)

    def verify_director(self, job: Job) -> None:
        """Check a job against the director's keys of the metadata that was trusted last.

        Raises:
            SigningError: it does not hold, or no metadata was trusted yet.
        """
        verify_job(job, self._director_keys(), device=self._device, now_ms=self._wall_ms())

    def fetch(self, trust: Trust, digest: str, what: Updated) -> Path:
        """Download what is not here yet; returns the folder, not yet verified as a package.

        Raises:
            UpdateRefused: the manifest is unusable or disagrees with the signed metadata, or there is no room.
            DownloadError: the link or the server did not answer.
            LengthOrHashMismatchError: a file came that is not what was signed.
        """
        folder = self._incoming / digest
        for other in self._incoming.glob("*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        if trust.manifest_target.length > MAX_MANIFEST_BYTES:
            raise UpdateRefused("bad_manifest", f"the manifest has {trust.manifest_target.length} bytes")
        self._download(trust, trust.manifest_target, folder / MANIFEST, what)
        try:
            contents = what.contents((folder / MANIFEST).read_bytes())
        except PackageError as error:
            raise UpdateRefused(error.code, str(error)) from error
        needed = contents.needed_bytes + MIN_FREE_BYTES
        if shutil.disk_usage(folder).free < needed:
            raise UpdateRefused("space", f"the {what.subject.value} needs {needed} bytes free on the disk; make room")
        for file in contents.files:
            target = trust.updater.get_targetinfo(target_path(digest, file.name, what.role))
            if target is None or target.hashes.get("sha256") != file.sha256 or target.length != file.bytes:
                raise UpdateRefused("metadata", f"the signed metadata does not list {file.name} as the manifest has it")
            self._download(trust, target, folder / file.name, what)
        sync_folder(folder)
        return folder

    def incoming(self, digest: str) -> Path:
        """Where `fetch` puts a package."""
        return self._incoming / digest

    def clean(self) -> None:
        """Delete everything that is under way."""
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._fetcher.clear()

    def _refresh(self) -> Updater:
        self._metadata.mkdir(parents=True, exist_ok=True)
        updater = Updater(str(self._metadata), "metadata/", None, "targets/", self._fetcher, bootstrap=self._root)
        updater.refresh()
        timestamp = Metadata[Timestamp].from_bytes((self._metadata / "timestamp.json").read_bytes()).signed
        self._state.raise_floor(TIME_FLOOR_MS, signed_at_ms(timestamp))
        return updater

    def _director_keys(self) -> dict[str, Key]:
        """Out of the targets metadata that python-tuf verified and kept."""
        try:
            targets = Metadata[Targets].from_bytes((self._metadata / "targets.json").read_bytes()).signed
        except (OSError, RepositoryError):
            return {}
        return director_keys(targets)

    def _download(self, trust: Trust, target: TargetFile, to: Path, what: Updated) -> None:
        if _has_digest(to, target.hashes["sha256"]):
            return
        twin = what.twin(to.name)
        if twin is not None and _has_digest(twin, target.hashes["sha256"]):
            shutil.copyfile(twin, to)
        else:
            try:
                trust.updater.download_target(target, str(to))
            except DownloadLengthMismatchError as error:
                raise LengthOrHashMismatchError(str(error)) from error
        sync_file(to)


def _has_digest(path: Path, digest: str) -> bool:
    try:
        with path.open("rb") as file:
            return (
                hashlib.file_digest(file, "sha256").hexdigest() == digest
                if hasattr(hashlib, "file_digest")
                else (hashlib.sha256(file.read()).hexdigest() == digest)
            )
    except OSError:
        return False
