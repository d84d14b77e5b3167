"""The files that a configuration points to: made absolute, and looked at before anything is built.

In: an `AgentConfig`. Out: the same with every path absolute; `ConfigError` with all that is missing, or that others can read and must
not. It reads none of the files and mends nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bowerbird_agent.capture.capture import kind_of
from bowerbird_agent.errors import ConfigError

if TYPE_CHECKING:
    from bowerbird_agent.config import AgentConfig


def absolute(config: AgentConfig, folder: Path) -> AgentConfig:
    """The configuration with relative paths, and those under `~`, made absolute; `folder` is where the file lies."""

    def at(path: Path | None) -> Path | None:
        return None if path is None else folder / path.expanduser()

    cameras = tuple(
        replace(camera, source=str(folder / Path(camera.source.removeprefix("file://")).expanduser()))
        if kind_of(camera.source) == "path"
        else camera
        for camera in config.cameras
    )
    return replace(
        config,
        device=replace(config.device, state_dir=folder / config.device.state_dir.expanduser()),
        broker=replace(
            config.broker,
            password_file=at(config.broker.password_file),
            ca_file=at(config.broker.ca_file),
            certificate_file=at(config.broker.certificate_file),
        ),
        update=replace(config.update, trusted_root=at(config.update.trusted_root)),
        model=replace(config.model, factory=at(config.model.factory)),
        cameras=cameras,
    )


def check_files(config: AgentConfig, source: str) -> None:
    """Check what the configuration points to.

    Raises:
        ConfigError: a film, folder, model, root or password file is missing, or others can read the password.
    """
    found: list[str] = []
    for i, camera in enumerate(config.cameras):
        if kind_of(camera.source) == "path" and not Path(camera.source).exists():
            found.append(f"cameras[{i}].source: {camera.source} does not exist; check the path")
    pointed = (
        ("model.factory", config.model.factory),
        ("update.trusted_root", config.update.trusted_root),
        ("broker.password_file", config.broker.password_file),
        ("broker.ca_file", config.broker.ca_file),
        ("broker.certificate_file", config.broker.certificate_file),
    )
    found += [
        f"{key}: {path} does not exist; check the path" for key, path in pointed if path is not None and not path.exists()
    ]
    for key in ("password_file", "certificate_file"):
        secret = getattr(config.broker, key)
        if secret is not None and secret.is_file() and secret.stat().st_mode & 0o077:
            found.append(f"broker.{key}: others can read {secret}; run `chmod 600 {secret}`")
    if config.model.factory is None and config.update.trusted_root is None:
        found.append(
            "model.factory: neither a factory model nor update.trusted_root is given, so no model would ever run; name one"
        )
    if found:
        raise ConfigError(source, found)
