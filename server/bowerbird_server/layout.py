"""Where the server keeps things: one data folder, one typed value that names every place in it.

In: the data folder's path. Out: `DataFolder`. It makes folders with tight modes and does nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ANCHORS_NAME = "audit-anchors"


@dataclass(frozen=True)
class DataFolder:
    """The server's data folder, `./bowerbird-data` unless told otherwise."""

    root: Path

    @property
    def catalogue(self) -> Path:
        """The SQLite file."""
        return self.root / "catalogue.db"

    @property
    def blobs(self) -> Path:
        """Content-addressed images, models and manifests."""
        return self.root / "blobs"

    @property
    def parts(self) -> Path:
        """Parts of frames that are not whole yet. Devices send again what is lost here."""
        return self.root / "parts"

    @property
    def deletions(self) -> Path:
        """The log of deletions, one JSON object a line; copied apart from backups, so that none of them brings a frame back."""
        return self.root / "deletions.jsonl"

    @property
    def broker(self) -> Path:
        """Configuration, passwords and access rules of the embedded broker, and `broker.json` (host, port, user, password)."""
        return self.root / "broker"

    @property
    def keys(self) -> Path:
        """Signing keys; mode 0700."""
        return self.root / "keys"

    @property
    def identity(self) -> Path:
        """The certificate authority's keys and certificates, and those of the server's own processes; mode 0700."""
        return self.root / "identity"

    @property
    def repository(self) -> Path:
        """The TUF repository that devices read: `metadata/` and `targets/`."""
        return self.root / "repository"

    @property
    def packages(self) -> Path:
        """Model packages, a folder per model digest."""
        return self.root / "packages"

    @property
    def agents(self) -> Path:
        """Releases of the agent, a folder per release digest."""
        return self.root / "agents"

    @property
    def datasets(self) -> Path:
        """Data set versions laid out for Ultralytics; can be made again from the blobs."""
        return self.root / "datasets"

    @property
    def training(self) -> Path:
        """A working folder per training run."""
        return self.root / "training"

    @property
    def devices(self) -> Path:
        """A folder per device made here: its `agent.toml` and trusted root, mode 0700."""
        return self.root / "devices"

    @property
    def audit_anchors(self) -> Path:
        """Where the audit log ended now and then, outside of the catalogue."""
        return self.root / ANCHORS_NAME

    @property
    def logs(self) -> Path:
        """One log file per server process."""
        return self.root / "logs"

    def make(self) -> DataFolder:
        """Make every folder that is missing; returns itself."""
        self.root.mkdir(parents=True, exist_ok=True)
        for folder in self.places():
            folder.mkdir(
                exist_ok=True, mode=0o700 if folder in (self.broker, self.keys, self.identity, self.devices) else 0o777
            )
        return self

    def places(self) -> tuple[Path, ...]:
        """Every folder that `make` makes in the data folder."""
        return (
            self.blobs,
            self.parts,
            self.packages,
            self.agents,
            self.datasets,
            self.training,
            self.repository,
            self.logs,
            self.broker,
            self.keys,
            self.identity,
            self.devices,
        )
