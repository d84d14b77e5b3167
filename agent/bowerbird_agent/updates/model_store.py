"""The models on a device's disk: verified packages by digest, and four slots that point at them.

In: verified packages, and which one shall be active. Out: `ModelSlot`. The slots `active`, `candidate`, `previous` and `factory` are
lines of one file that is replaced in one step, so a device has exactly one active model or none whenever power fails. At boot the
active model's digests are checked: damaged, it gives way to the previous, then to the factory model. It trusts nothing by
itself: what may become active is decided by the updater.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bowerbird_models.durable import sync_folder, write_durably
from bowerbird_models.errors import ModelError
from bowerbird_models.package import ModelManifest, PackageOnDisk, build_package, load_package

logger = logging.getLogger(__name__)

ACTIVE, CANDIDATE, PREVIOUS, FACTORY = "active", "candidate", "previous", "factory"
SLOTS = (ACTIVE, CANDIDATE, PREVIOUS, FACTORY)
FACTORY_CREATED_AT = "1970-01-01T00:00:00.000Z"  # a bare file has no date; a fixed one keeps its digest the same everywhere


@dataclass(frozen=True)
class ModelSlot:
    """A model that can be loaded: model digest, package folder, manifest."""

    digest: str
    dir: Path
    manifest: ModelManifest

    @property
    def onnx(self) -> Path:
        """The float file: what runs unless something else was chosen."""
        return self.dir / self.manifest.reference_file.name

    @property
    def file_digest(self) -> str:
        """SHA-256 of that file."""
        return self.manifest.reference_file.sha256


class ModelStore:
    """The folder `models` of the agent's state. Methods may be called from any thread.

    Args:
        root: made if missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.packages = root / "packages"
        self._slots_file = root / "slots.json"
        self._lock = threading.RLock()
        self.packages.mkdir(parents=True, exist_ok=True)
        self._slots = self._read_slots()

    # -- reading ------------------------------------------------------------------------------------------------------------

    def digest(self, slot: str) -> str:
        """The model digest in a slot, "" where it is empty."""
        with self._lock:
            return self._slots.get(slot, "")

    def active(self) -> ModelSlot | None:
        """The model that answers frames, or None on a device that has none yet."""
        return self.slot(ACTIVE)

    def slot(self, slot: str) -> ModelSlot | None:
        """The model in a slot, its manifest read but its files not hashed again; None where it is empty or unreadable."""
        with self._lock:
            digest = self.digest(slot)
            if not digest:
                return None
            try:
                return ModelSlot(digest, self.folder(digest), self._manifest(digest))
            except (ModelError, OSError) as error:
                logger.warning("model %s in slot %s cannot be read: %s", digest[:12], slot, error)
                return None

    def folder(self, digest: str) -> Path:
        """Where the package of a digest lies, whether or not it does."""
        return self.packages / digest

    def is_intact(self, digest: str) -> bool:
        """Whether every file of a package has its digest."""
        if not digest:
            return False
        try:
            load_package(self.folder(digest), digest=digest)
        except ModelError as error:
            logger.debug("model %s is not intact: %s", digest[:12], error)
            return False
        return True

    # -- changing -----------------------------------------------------------------------------------------------------------

    def boot(self) -> ModelSlot | None:
        """The model to load at start: active, else previous, else factory, else None; the first that is intact becomes active."""
        with self._lock:
            wanted = self.digest(ACTIVE)
            for slot in (ACTIVE, PREVIOUS, FACTORY):
                digest = self.digest(slot)
                if digest and self.is_intact(digest):
                    if slot != ACTIVE:
                        if wanted:
                            logger.warning("model %s is damaged; the %s model %s takes over", wanted[:12], slot, digest[:12])
                        self._write({**self._slots, ACTIVE: digest})
                    return self.active()
            if wanted:
                logger.warning("no model on this device is intact; waiting for the server to send one")
                self._write({**self._slots, ACTIVE: ""})
            return None

    def put(self, folder: Path, digest: str) -> PackageOnDisk:
        """Move a fetched folder into the store as the candidate, verified.

        Raises:
            PackageError: it does not verify; nothing has changed.
        """
        with self._lock:
            target = self.folder(digest)
            if not self.is_intact(digest):
                load_package(folder, digest=digest)
                if target.exists():
                    shutil.rmtree(target)
                sync_folder(folder)
                folder.rename(target)
                sync_folder(self.packages)
            self._write({**self._slots, CANDIDATE: digest})
            return load_package(target, digest=digest)

    def activate(self, digest: str) -> ModelSlot | None:
        """Make a model of the store active in one step; the one before becomes `previous`. "" empties the slot.

        Doing it again changes nothing.
        """
        with self._lock:
            before = self.digest(ACTIVE)
            if before != digest:
                slots = {**self._slots, ACTIVE: digest}
                if before:
                    slots[PREVIOUS] = before
                self._write(slots)
            return self.active()

    def fall_back(self, digest: str) -> ModelSlot | None:
        """Stop using `digest`, which cannot be loaded: the previous or the factory model becomes active, or none."""
        with self._lock:
            others = [self.digest(slot) for slot in (PREVIOUS, FACTORY)]
            self._write({**self._slots, ACTIVE: next((other for other in others if other and other != digest), "")})
            return self.boot()

    def drop_candidate(self, *, bad: str = "") -> None:
        """Empty the candidate slot and, where it holds the digest `bad`, the previous one."""
        with self._lock:
            slots = {**self._slots, CANDIDATE: ""}
            if bad and slots.get(PREVIOUS) == bad:
                slots[PREVIOUS] = ""
            if slots != self._slots:
                self._write(slots)

    def set_previous(self, digest: str) -> None:
        """Say which model a later fall-back goes to."""
        with self._lock:
            if self.digest(PREVIOUS) != digest:
                self._write({**self._slots, PREVIOUS: digest})

    def install_factory(self, source: Path) -> ModelSlot:
        """Take the model that the device was made with: a package folder or a bare ONNX file; active if nothing is.

        Doing it again with the same source changes nothing.

        Raises:
            ModelError: it is no usable model; the message names the file.
        """
        with self._lock:
            part = self.root / "factory.part"
            shutil.rmtree(part, ignore_errors=True)
            if source.is_dir():
                digest = load_package(source).digest
            else:
                digest = build_package(part, source, created_at=FACTORY_CREATED_AT).digest
            if not self.is_intact(digest):
                if source.is_dir():
                    shutil.copytree(source, part)
                load_package(part, digest=digest)
                shutil.rmtree(self.folder(digest), ignore_errors=True)
                part.rename(self.folder(digest))
                sync_folder(self.packages)
            shutil.rmtree(part, ignore_errors=True)
            slots = {**self._slots, FACTORY: digest}
            if not slots.get(ACTIVE):
                slots[ACTIVE] = digest
            if slots != self._slots:
                self._write(slots)
            return ModelSlot(digest, self.folder(digest), self._manifest(digest))

    def collect_garbage(self) -> list[str]:
        """Delete packages that no slot names; returns their digests."""
        with self._lock:
            kept = {digest for digest in self._slots.values() if digest}
            gone = [folder.name for folder in self.packages.iterdir() if folder.name not in kept]
            for name in gone:
                shutil.rmtree(self.packages / name, ignore_errors=True)
            return gone

    # -- the slots file -----------------------------------------------------------------------------------------------------

    def _read_slots(self) -> dict[str, str]:
        try:
            plain = json.loads(self._slots_file.read_bytes())
        except FileNotFoundError:
            return dict.fromkeys(SLOTS, "")
        except (OSError, ValueError) as error:
            logger.warning(
                "%s cannot be read (%s); starting as if no model was ever installed",
                self._slots_file,
                error,
            )
            return dict.fromkeys(SLOTS, "")
        slots = plain if isinstance(plain, Mapping) else {}
        return {slot: value if isinstance(value := slots.get(slot), str) and value.isalnum() else "" for slot in SLOTS}

    def _write(self, slots: dict[str, str]) -> None:
        write_durably(self._slots_file, json.dumps(slots, indent=1).encode())
        self._slots = slots

    def _manifest(self, digest: str) -> ModelManifest:
        return ModelManifest.from_bytes((self.folder(digest) / "manifest.json").read_bytes())
