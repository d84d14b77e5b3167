"""Keys in a backup under a passphrase: unreadable to whoever finds the disk, whole again for whoever knows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bowerbird_server.backup import back_up, restore
from bowerbird_server.cli.app import app
from bowerbird_server.errors import BadInput
from bowerbird_server.sealed import MAGIC, read_passphrase, seal, unseal
from bowerbird_server.site import Site
from bowerbird_testing.lived_in_site import live_in

PASSPHRASE = "correct horse battery"
SECRET = b"-----BEGIN PRIVATE KEY----- of the issuing authority"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = live_in(tmp_path / "data", tmp_path / "scratch")
    (site.folder.keys / "issuing.pem").write_bytes(SECRET)
    (site.folder.root / "web.json").write_bytes(b'{"token": "' + SECRET + b'"}')
    yield site
    site.close()


def files_with(folder: Path, needle: bytes) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes())


def test_no_file_of_the_backup_shows_a_key_and_a_restore_has_them_all(site: Site, tmp_path: Path) -> None:
    back_up(site, tmp_path / "backup", with_keys=True, passphrase=PASSPHRASE)
    assert files_with(tmp_path / "backup", SECRET) == []
    restored = restore(tmp_path / "backup", tmp_path / "again", "test", passphrase=PASSPHRASE)
    assert restored.with_keys
    assert files_with(tmp_path / "again", SECRET) == ["keys/issuing.pem", "web.json"]
    assert (tmp_path / "again" / "keys" / "issuing.pem").stat().st_mode & 0o077 == 0
    assert not list((tmp_path / "again").glob("*.sealed"))


@pytest.mark.parametrize(("passphrase", "why"), [(None, "are sealed"), ("correct horse batter", "passphrase is wrong")])
def test_without_the_passphrase_nothing_is_restored(site: Site, tmp_path: Path, passphrase: str | None, why: str) -> None:
    back_up(site, tmp_path / "backup", with_keys=True, passphrase=PASSPHRASE)
    with pytest.raises(BadInput, match=why):
        restore(tmp_path / "backup", tmp_path / "again", "test", passphrase=passphrase)
    assert not (tmp_path / "again").exists()


def test_a_changed_byte_anywhere_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(SECRET)
    sealed = seal(tmp_path, [tmp_path / "key"], PASSPHRASE)
    for at in (0, len(MAGIC) + 3, len(MAGIC) + 20, len(MAGIC) + 40, len(sealed) - 1):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(BadInput):
            unseal(bytes(changed), PASSPHRASE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_keys_are_sealed_differently_each_time(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(SECRET)
    assert seal(tmp_path, [tmp_path / "key"], PASSPHRASE) != seal(tmp_path, [tmp_path / "key"], PASSPHRASE)


def test_the_commands_take_the_passphrase_from_a_file_of_its_owner(site: Site, tmp_path: Path) -> None:
    """Never from the command line, where `ps` and the shell's history would show it."""
    file = tmp_path / "passphrase"
    file.write_text(PASSPHRASE + "\n")
    file.chmod(0o644)
    with pytest.raises(BadInput, match="others can read"):
        read_passphrase(file)
    file.chmod(0o600)
    data = ["--data", str(site.folder.root)]
    options = ["--with-keys", "--passphrase-file", str(file)]
    assert CliRunner().invoke(app, ["backup", str(tmp_path / "backup"), *options, *data]).exit_code == 0
    assert files_with(tmp_path / "backup", SECRET) == []
    lone = CliRunner().invoke(app, ["backup", str(tmp_path / "other"), "--passphrase-file", str(file), *data])
    assert isinstance(lone.exception, BadInput)


def test_a_passphrase_that_keeps_nothing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_text("secret")
    file.chmod(0o600)
    with pytest.raises(BadInput, match="12 or more"):
        read_passphrase(file)
