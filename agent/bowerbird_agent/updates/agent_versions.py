"""The versions of the agent that came over the air, on the disk: environments by release digest, and which of them is started.

In: a release digest to try, to confirm or to give up. Out: links and small files below STATE/agent, which the launcher
(deploy/launch.sh) reads before anything of ours runs; it counts the starts of a trial and takes a version back that cannot do
so itself. The environment that install.sh made, the *base*, lies outside and is never touched: its digest is "". It installs
nothing (`agent_install.py`) and decides nothing (`updater.py`).

    versions/DIGEST/          an environment; wheels/ in it is the release that it was made of; .complete once it is whole
    current -> versions/...   what is started; without it the base
    previous -> versions/...  what a roll-back returns to; without it the base
    trial                     the version on trial, its starts, the boot and the seconds it has: lines of "key value"
    failed                    "DIGEST REASON": the launcher has taken that version back, or a person has put it aside
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from bowerbird_models.agent_release import ReleaseOnDisk, load_release
from bowerbird_models.durable import sync_folder, write_durably
from bowerbird_models.errors import ModelError

logger = logging.getLogger(__name__)

BASE = ""
WHEELS, COMPLETE = "wheels", ".complete"
_HEX = frozenset("0123456789abcdef")


class AgentVersions:
    """The folder `agent` of the agent's state. It belongs to the updater's thread.

    Args:
        home: made when it is first needed.
        prefix: of the running interpreter (`sys.prefix`); says which version runs.
    """

    def __init__(self, home: Path, *, prefix: Path) -> None:
        self.home = home
        self._versions = home / "versions"
        self.prefix = prefix
        is_ours = prefix.resolve().parent == self._versions.resolve() and _is_digest(prefix.name)
        self.running = prefix.name if is_ours else BASE

    # -- reading ------------------------------------------------------------------------------------------------------------

    @property
    def current(self) -> str:
        """Digest of what the launcher starts next, "" for the base."""
        return self._link("current")

    @property
    def previous(self) -> str:
        """Digest of what a roll-back returns to, "" for the base."""
        return self._link("previous")

    def folder(self, digest: str) -> Path:
        """Where a version lies, whether or not it does."""
        return self._versions / digest

    def wheels(self, digest: str) -> Path:
        """The release that a version is made of."""
        return self.folder(digest) / WHEELS

    def is_complete(self, digest: str) -> bool:
        """Whether a version was installed to its end."""
        return _is_digest(digest) and (self.folder(digest) / COMPLETE).is_file()

    def is_intact(self, digest: str) -> bool:
        """Whether every file of a version's release has its digest."""
        try:
            load_release(self.wheels(digest), digest=digest)
        except ModelError as error:
            logger.debug("release %s is not intact: %s", digest[:12], error)
            return False
        return True

    def failure(self, digest: str) -> str:
        """Why the launcher took a version back, "" when it did not."""
        try:
            failed, _, reason = (self.home / "failed").read_text("utf-8", "replace").partition(" ")
        except OSError:
            return ""
        return (reason.strip()[:40] or "failed") if failed == digest else ""

    # -- changing -----------------------------------------------------------------------------------------------------------

    def put(self, folder: Path, digest: str) -> ReleaseOnDisk:
        """Move a fetched release to its place, verified; an environment that was begun there before is removed.

        Raises:
            PackageError: it does not verify; nothing has changed.
        """
        target = self.wheels(digest)
        if not self.is_intact(digest):
            load_release(folder, digest=digest)
            shutil.rmtree(self.folder(digest), ignore_errors=True)
            self.folder(digest).mkdir(parents=True)
            sync_folder(folder)
            folder.rename(target)
            sync_folder(target.parent)
            sync_folder(self._versions)
        return load_release(target, digest=digest)

    def clear_environment(self, digest: str) -> None:
        """Remove what an interrupted installation left of a version; its release stays."""
        for path in self.folder(digest).iterdir() if self.folder(digest).is_dir() else ():
            if path.name != WHEELS:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def mark_complete(self, digest: str) -> None:
        """The version is installed: everything it wrote reaches the disk before this mark does."""
        os.sync()
        write_durably(self.folder(digest) / COMPLETE, b"")

    def begin_trial(self, digest: str, *, seconds: int) -> None:
        """Have the launcher start a version on trial; doing it again changes nothing.

        Args:
            seconds: how long a start may last without `confirm` before the launcher ends it.
        """
        (self.home / "failed").unlink(missing_ok=True)
        # The trial first: a version that is current and not on trial would never be taken back.
        lines = f"digest {digest}\nstarts 0\nboot -\nboots 0\nseconds {seconds}\n"
        write_durably(self.home / "trial", lines.encode(), 0o600)
        self._point("previous", self.running)
        self._point("current", digest)

    def confirm(self) -> None:
        """What runs stays: nothing counts its starts any more."""
        for name in ("trial", "failed"):
            (self.home / name).unlink(missing_ok=True)
        if self.home.is_dir():
            sync_folder(self.home)

    def fall_back(self, to: str) -> None:
        """Have the launcher start `to` again, the base where that is not whole."""
        self._point("current", to if self.is_complete(to) else BASE)
        self._point("previous", BASE)
        (self.home / "trial").unlink(missing_ok=True)

    def forgive_start(self) -> None:
        """An orderly end in the trial does not count against the version."""
        path = self.home / "trial"
        try:
            lines = dict(line.split(" ", 1) for line in path.read_text("utf-8").splitlines())
            if lines.get("digest") == self.running and int(lines["starts"]) > 0:
                lines["starts"] = str(int(lines["starts"]) - 1)
                write_durably(path, "".join(f"{key} {value}\n" for key, value in lines.items()).encode(), 0o600)
        except (OSError, ValueError, KeyError) as error:
            logger.debug("this start of the trial stays counted: %s", error)

    def collect_garbage(self) -> list[str]:
        """Delete versions that are neither running, current nor previous; returns their digests."""
        kept = {self.running, self.current, self.previous}
        gone = [path for path in self._versions.iterdir() if path.name not in kept] if self._versions.is_dir() else []
        for path in gone:
            shutil.rmtree(path, ignore_errors=True)
        return [path.name for path in gone]

    # -- links --------------------------------------------------------------------------------------------------------------

    def _link(self, name: str) -> str:
        try:
            digest = (self.home / name).readlink().name
        except OSError:
            return BASE
        return digest if _is_digest(digest) else BASE

    def _point(self, name: str, digest: str) -> None:
        """A link is replaced by a rename: at every moment it points to a whole version, or there is none."""
        if self._link(name) == digest:
            return
        if digest == BASE:
            (self.home / name).unlink(missing_ok=True)
        else:
            part = self.home / f".{name}.new"
            part.unlink(missing_ok=True)
            part.symlink_to(Path("versions", digest))
            part.replace(self.home / name)
        sync_folder(self.home)


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= _HEX
