"""Private files under a passphrase: what of a backup must not be readable to whoever finds the disk.

In: files and a passphrase. Out: one run of bytes, and the files back. The key is drawn from the passphrase by scrypt (64 MB of memory
for each guess), the content is a tar file under AES-256-GCM; a wrong passphrase and a changed byte are told as the same thing, because
they are the same to the cipher. It chooses no passphrase and keeps none.

Source: RFC 7914 (scrypt), NIST SP 800-38D (GCM).
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from bowerbird_server.errors import BadInput

MAGIC = b"BWRSEAL\x01"
LEAST_PASSPHRASE = 12
_SALT_BYTES, _NONCE_BYTES = 16, 12
_SCRYPT_N = 2**16


def read_passphrase(path: Path) -> str:
    """The first line of a file that only its owner can read.

    Raises:
        BadInput: it cannot be read, others can read it, or the passphrase is too short to keep anything.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise BadInput(f"others can read {path}; run `chmod 600 {path}`")
        passphrase = path.read_text("utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the passphrase file {path} cannot be read; check path and owner") from error
    if len(passphrase) < LEAST_PASSPHRASE:
        raise BadInput(f"the passphrase in {path} has {len(passphrase)} characters; use {LEAST_PASSPHRASE} or more")
    return passphrase


def seal(root: Path, files: Iterable[Path], passphrase: str) -> bytes:
    """Files below `root` as one sealed run of bytes; symbolic links are none of them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in files:
            entry = tarfile.TarInfo(str(path.relative_to(root)))
            content = path.read_bytes()
            entry.size, entry.mode = len(content), 0o600
            tar.addfile(entry, io.BytesIO(content))
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    return MAGIC + salt + nonce + AESGCM(_key(passphrase, salt)).encrypt(nonce, packed.getvalue(), MAGIC)


def unseal(data: bytes, passphrase: str, root: Path) -> list[Path]:
    """Write the files back below `root`, readable to their owner only; returns where they are.

    Raises:
        BadInput: the passphrase is wrong or the bytes are damaged; nothing was written.
    """
    head = len(MAGIC)
    salt, nonce = data[head : head + _SALT_BYTES], data[head + _SALT_BYTES : head + _SALT_BYTES + _NONCE_BYTES]
    try:
        if not data.startswith(MAGIC):
            raise ValueError("no sealed file")
        plain = AESGCM(_key(passphrase, salt)).decrypt(nonce, data[head + _SALT_BYTES + _NONCE_BYTES :], MAGIC)
    except (InvalidTag, ValueError) as error:
        raise BadInput("the backup's keys cannot be opened: the passphrase is wrong, or the file is damaged") from error
    written = []
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        for entry in tar.getmembers():
            content = tar.extractfile(entry)
            path = (root / entry.name).resolve()
            if content is None or root.resolve() not in path.parents:
                raise BadInput(f"the backup's keys name {entry.name[:80]!r}, which is no file of a data folder")
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(content.read())
                file.flush()
                os.fsync(handle)
            written.append(path)
    return written


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=_SCRYPT_N, r=8, p=1).derive(passphrase.encode())
