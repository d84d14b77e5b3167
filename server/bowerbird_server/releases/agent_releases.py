"""The releases of the agent that a site has: taken in, published, found again by version.

In: archives, an operator's wishes. Out: folders `agents/DIGEST` in the data folder, which are the truth: no table repeats what their
manifests say; and signed releases in the update repository. It offers them to nobody (`rollout.py` decides that).
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bowerbird_models.agent_release import AgentManifest, ReleaseOnDisk, load_release
from bowerbird_models.durable import sync_folder
from bowerbird_models.errors import ModelError
from bowerbird_models.manifest import MANIFEST
from bowerbird_models.release_roles import AGENTS_ROLE
from bowerbird_server.errors import BadInput, NotFound
from bowerbird_server.releases.agent_archive import unpack
from bowerbird_server.releases.registry import open_repository
from bowerbird_server.site import Site


@dataclass(frozen=True)
class AgentRelease:
    """A release that this site has; `release` is its counter once it is published, `awaits` the one that awaits a signature."""

    digest: str
    manifest: AgentManifest
    release: int | None
    awaits: int | None = None


def import_release(site: Site, archive: Path, actor: str) -> AgentRelease:
    """Take in an archive; one that is here already changes nothing.

    Raises:
        BadInput: it is no release, or there is no such file.
    """
    if not archive.is_file():
        raise BadInput(f"there is no file {archive}; give the path of a bowerbird-agent-VERSION-MACHINE-PYTHON.tar")
    home = site.folder.agents
    home.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".import-") as scratch:
        release = unpack(archive, Path(scratch, "release"))
        target = home / release.digest
        if not _is_whole(target, release.digest):
            shutil.rmtree(target, ignore_errors=True)
            release.dir.rename(target)
            sync_folder(home)
            with site.catalogue.transaction():
                why = {"version": release.manifest.version, "machine": release.manifest.machine, "file": archive.name}
                site.catalogue.log(actor, "agent release imported", release.digest, why)
    return find(site, release.digest)


def list_releases(site: Site) -> list[AgentRelease]:
    """All that are here, the newest first."""
    repository = open_repository(site)
    published, awaiting = repository.releases(AGENTS_ROLE), repository.awaiting_signature(AGENTS_ROLE)
    found = []
    for path in site.folder.agents.glob(f"*/{MANIFEST}"):
        try:
            manifest = AgentManifest.from_bytes(path.read_bytes())
        except (ModelError, OSError):
            continue  # an import that was cut short
        digest = path.parent.name
        if not digest.startswith("."):
            found.append(AgentRelease(digest, manifest, published.get(digest), awaiting.get(digest)))
    return sorted(found, key=lambda each: (each.manifest.created_at, each.digest), reverse=True)


def find(site: Site, name: str, *, machine: str | None = None, python: str | None = None) -> AgentRelease:
    """A release by its version, its digest or a beginning of it.

    Raises:
        NotFound: there is none.
        BadInput: there are several; say for which machine and Python.
    """
    found = [
        each
        for each in list_releases(site)
        if (each.manifest.version == name or (len(name) >= 6 and each.digest.startswith(name)))
        and machine in {None, each.manifest.machine}
        and python in {None, each.manifest.python}
    ]
    if not found:
        raise NotFound(
            f"no agent release {name[:64]!r}; `bowerbird agents list` shows what there is, `agents import` takes one in"
        )
    if len(found) > 1:
        each = ", ".join(f"{r.digest[:12]} ({r.manifest.machine}, Python {r.manifest.python})" for r in found[:6])
        raise BadInput(f"several releases are called {name}: {each}; name one by its digest")
    return found[0]


def publish_release(site: Site, digest: str, actor: str, *, again: bool = False) -> int:
    """Sign a release into the repository; returns its counter (the old one when it was published before).

    Args:
        again: give it a new counter, which is how devices are brought back to an older version.

    Raises:
        AwaitingSignature: mode `approved`; `bowerbird agents sign` finishes it.
        BadInput: its files are damaged.
    """
    counter = open_repository(site).publish_agent(release_of(site, digest), again=again)
    with site.catalogue.transaction():
        site.catalogue.log(actor, "agent release published", digest, {"release": counter})
    return counter


def finish_signing(site: Site, key: Path | None, actor: str) -> dict[str, int]:
    """Publish what waits for the offline agents key (mode `approved`); returns counter by digest.

    Args:
        key: signs it here; None when it was signed on another machine.

    Raises:
        NotFound: nothing waits.
        Conflict: it is not signed by the agents key.
        EnvironmentFault: the key cannot be used.
    """
    repository = open_repository(site)
    signed = repository.finish(AGENTS_ROLE) if key is None else repository.sign(key, AGENTS_ROLE)
    with site.catalogue.transaction():
        for digest, counter in signed.items():
            site.catalogue.log(actor, "agent release published", digest, {"release": counter})
    return signed


def release_of(site: Site, digest: str) -> ReleaseOnDisk:
    """The verified release of a digest.

    Raises:
        BadInput: its files are damaged.
    """
    try:
        return load_release(site.folder.agents / digest, digest=digest)
    except ModelError as error:
        raise BadInput(f"agent release {digest[:12]}: {error}") from error


def _is_whole(folder: Path, digest: str) -> bool:
    try:
        load_release(folder, digest=digest)
    except ModelError:
        return False
    return True
