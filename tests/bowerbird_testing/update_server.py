"""An update server in memory: signs real TUF metadata, answers block requests, and can be made to misbehave.

In: packages to publish, and switches for what goes wrong. Out: blocks and signed jobs. The link between it and the device loses,
doubles, reorders and corrupts by a seeded generator; the server itself can replay what it once published, sign with stolen or
foreign keys, and tamper with any file.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from securesystemslib.signer import CryptoSigner

from bowerbird_models.agent_release import ReleaseOnDisk
from bowerbird_models.manifest import MANIFEST
from bowerbird_models.package import PackageOnDisk
from bowerbird_models.signing import (
    PublicKeys,
    add_agent_release,
    add_package,
    new_models,
    new_root,
    new_snapshot,
    new_targets,
    new_timestamp,
    sign,
    sign_job,
    utc,
)
from bowerbird_wire.codec import decode, encode
from bowerbird_wire.messages import OF, Block, BlockRequest, Job, Report

DAY_S = 86_400.0


@dataclass
class LinkFaults:
    """What the way back does to blocks; probabilities in [0, 1]."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: bool = False
    corrupt_paths: tuple[str, ...] = ()  # blocks of paths that contain one of these have a bit flipped
    corruptions_left: int = 1_000_000
    black_hole: Callable[[str], bool] = lambda path: False
    seed: int = 1


@dataclass
class UpdateServer:
    """See the module. `send` is what an `UpdateRunner` is given; `connect` tells where blocks go."""

    now_s: float = field(default_factory=time.time)
    faults: LinkFaults = field(default_factory=LinkFaults)
    files: dict[str, bytes] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    requests: list[BlockRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = {
            name: CryptoSigner.generate_ed25519()
            for name in ("root-1", "root-2", "root-3", "targets", "snapshot", "timestamp", "models", "director", "agents")
        }
        self._random = random.Random(self.faults.seed)
        self._deliver: Callable[[Block], None] = lambda block: None
        self._reported = threading.Condition()
        self.packages: list[tuple[PackageOnDisk, int]] = []
        self.agents: list[tuple[ReleaseOnDisk, int]] = []
        self.agents_signed_by, self.models_signed_by = "agents", "models"  # for attacks
        self.agents_among_the_models = False
        self.version = 0
        self._sign_all(first=True)
        self.root = self.files["metadata/1.root.json"]

    # -- the good server ----------------------------------------------------------------------------------------------------

    def publish(self, package: PackageOnDisk) -> int:
        """List a package under the next release counter."""
        release = max([0, *(each for _, each in self.packages)]) + 1
        self.packages = [(each, r) for each, r in self.packages if each.digest != package.digest] + [(package, release)]
        names = {MANIFEST: package.digest, **{f.name: f.sha256 for f in package.manifest.files.values()}}
        for name, digest in names.items():
            self.files[f"targets/models/{package.digest}/{digest}.{name}"] = (package.dir / name).read_bytes()
        self._sign_all()
        return release

    def publish_agent(self, release: ReleaseOnDisk) -> int:
        """List a release of the agent under the next release counter."""
        counter = max([0, *(each for _, each in self.agents)]) + 1
        self.agents = [(each, r) for each, r in self.agents if each.digest != release.digest] + [(release, counter)]
        names = {MANIFEST: release.digest, **{f.name: f.sha256 for f in release.manifest.files}}
        for name, digest in names.items():
            self.files[f"targets/agents/{release.digest}/{digest}.{name}"] = (release.dir / name).read_bytes()
        self._sign_all()
        return counter

    def agent_job(self, release: ReleaseOnDisk, counter: int, *, job_id: str = "job-1", key: str = "director") -> Job:
        """A job for the agent as the server's director signs it."""
        return self.sign(Job(job_id, release.digest, counter, extra={OF: "agent"}), key=key)

    def job(
        self, package: PackageOnDisk, release: int, *, job_id: str = "job-1", device: str = "cam-01", key: str = "director"
    ) -> Job:
        """A job as the server's director signs it."""
        bare = Job(job_id, package.digest, release)
        return self.sign(bare, device=device, key=key)

    def sign(self, job: Job, *, device: str = "cam-01", key: str = "director") -> Job:
        """Any job, signed by any of the keys and bound to a device; it has been on the wire."""
        signed = sign_job(job, self.keys[key], device=device, expires_at=utc(self.now_s + DAY_S))
        return decode(Job, encode(signed))

    def refresh(self) -> None:
        """Sign everything again under the next version, at `now_s`."""
        self._sign_all()

    # -- the link -----------------------------------------------------------------------------------------------------------

    def connect(self, deliver: Callable[[Block], None]) -> None:
        """Where blocks go."""
        self._deliver = deliver

    def send(self, message: BlockRequest | Report) -> None:
        """What the device sends arrives here."""
        if isinstance(message, Report):
            with self._reported:
                self.reports.append(decode(Report, encode(message)))
                self._reported.notify_all()
            return
        request = decode(BlockRequest, encode(message))
        self.requests.append(request)
        if self.faults.black_hole(request.path):
            return
        blocks = []
        for block in self._answer(request):
            if self._random.random() < self.faults.loss:
                continue
            blocks.append(self._corrupt(block))
            if self._random.random() < self.faults.duplicate:
                blocks.append(blocks[-1])
        if self.faults.reorder:
            self._random.shuffle(blocks)
        for block in blocks:
            self._deliver(decode(Block, encode(block)))

    def wait_for(self, *states: str, job_id: str = "", timeout_s: float = 30.0) -> Report:
        """The first report in one of these states, of one job where it is named; fails the test with all reports when none comes."""
        with self._reported:
            fitting: list[Report] = []

            def has_come() -> bool:
                fitting[:] = [r for r in self.reports if r.state in states and job_id in {"", r.job_id}]
                return bool(fitting)

            if self._reported.wait_for(has_come, timeout_s):
                return fitting[0]
        raise AssertionError(f"no report in {states} among {[(r.state, r.code, r.detail) for r in self.reports]}")

    def _answer(self, request: BlockRequest) -> list[Block]:
        content = self.files.get(request.path)
        if content is None:
            return [Block(request.path, request.first_block, request.block_bytes, error="not_found")]
        size = request.block_bytes
        last = max(1, -(-len(content) // size))
        indices = range(request.first_block, min(request.first_block + request.blocks, last))
        return [Block(request.path, i, size, len(content), content[i * size : (i + 1) * size]) for i in indices]

    def _corrupt(self, block: Block) -> Block:
        if self.faults.corruptions_left <= 0 or not any(part in block.path for part in self.faults.corrupt_paths):
            return block
        self.faults.corruptions_left -= 1
        data = bytearray(block.data)
        data[len(data) // 2] ^= 1
        return Block(block.path, block.index, block.block_bytes, block.total_bytes, bytes(data))

    # -- signing ------------------------------------------------------------------------------------------------------------

    def _sign_all(self, *, first: bool = False) -> None:
        self.version += 1
        v, now = self.version, self.now_s
        keys = PublicKeys(
            tuple(self.keys[f"root-{n}"].public_key for n in (1, 2, 3)),
            **{
                name: self.keys[name].public_key
                for name in ("targets", "snapshot", "timestamp", "models", "director", "agents")
            },
        )
        if first:
            root = new_root(keys, version=1, expires=utc(now + 365 * DAY_S))
            self.files["metadata/1.root.json"] = sign(root, [self.keys["root-1"], self.keys["root-2"]])
        targets = sign(new_targets(keys, version=v, expires=utc(now + 365 * DAY_S)), [self.keys["targets"]])
        models = new_models(version=v, expires=utc(now + 7 * DAY_S))
        for package, release in self.packages:
            add_package(models.signed, package.manifest, release)
        agents = new_models(version=v, expires=utc(now + 7 * DAY_S))
        for release, counter in self.agents:
            add_agent_release((models if self.agents_among_the_models else agents).signed, release.manifest, counter)
        signed_models = sign(models, [self.keys[self.models_signed_by]])
        signed_agents = sign(agents, [self.keys[self.agents_signed_by]])
        files = {"targets.json": (v, targets), "models.json": (v, signed_models), "agents.json": (v, signed_agents)}
        snapshot = sign(new_snapshot(files, version=v, expires=utc(now + 7 * DAY_S)), [self.keys["snapshot"]])
        timestamp = new_timestamp(v, snapshot, version=v, expires=utc(now + DAY_S), signed_at=utc(now))
        self.files[f"metadata/{v}.targets.json"] = targets
        self.files[f"metadata/{v}.models.json"] = signed_models
        self.files[f"metadata/{v}.agents.json"] = signed_agents
        self.files[f"metadata/{v}.snapshot.json"] = snapshot
        self.files["metadata/timestamp.json"] = sign(timestamp, [self.keys["timestamp"]])
