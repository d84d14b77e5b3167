"""Passwords and tokens: hashed, compared and refused when they are no secrets.

In: what people type. Out: argon2id hashes in their own text form, SHA-256 digests of tokens, yes or no. Passwords are slow to try on
purpose; tokens are 256 random bits, which nobody tries, so a fast digest keeps them. It knows no table.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from bowerbird_server.errors import BadInput

LEAST_LENGTH = 12
LONGEST = 256
TOKEN_PREFIX = "bbt_"  # noqa: S105 - so that a scanner for leaked secrets knows ours
_LEAST_TOKEN = 24
# Beside the length, which rules out the lists of common passwords but for a few: defaults and examples that people leave standing.
_KNOWN = frozenset({"password1234", "passwordpassword", "changeme1234", "changemechangeme", "administrator", "bowerbird1234"})
_hasher = PasswordHasher()
# Each try takes 64 MiB: a crowd at the log-in page must not take the memory of the machine.
_at_once = threading.Semaphore(2)
_nobody: list[str] = []


def _plain(password: str) -> str:
    return unicodedata.normalize("NFKC", password)


def hash_password(password: str, name: str) -> str:
    """The hash to keep.

    Args:
        name: of the account, which may not be the password.

    Raises:
        BadInput: it is too short or too long, or one that everybody knows.
    """
    plain = _plain(password)
    if not LEAST_LENGTH <= len(plain) <= LONGEST:
        raise BadInput(f"a password has {LEAST_LENGTH} to {LONGEST} characters; four random words make a good one")
    worn = plain.lower()
    if worn in _KNOWN or len(set(worn)) < 5 or (len(name) > 2 and name.lower() in worn) or "bowerbird" in worn:
        raise BadInput("this password would be tried first by anybody; choose another, for example four random words")
    with _at_once:
        return _hasher.hash(plain)


def password_matches(kept: str | None, password: str) -> bool:
    """Whether it is the password; without an account (None) it takes as long and says no."""
    if not _nobody:
        with _at_once:
            _nobody.append(_hasher.hash(secrets.token_urlsafe(16)))
    with _at_once:
        try:
            _hasher.verify(kept or _nobody[0], _plain(password[: 2 * LONGEST]))
        except (VerificationError, InvalidHashError):
            return False
    return kept is not None


def is_outdated(kept: str) -> bool:
    """Whether a hash was made with weaker settings than today's."""
    return _hasher.check_needs_rehash(kept)


def new_token() -> str:
    """A token for a program: 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def check_token(token: str) -> None:
    """Whether a token that somebody else made is a secret at all.

    Raises:
        ValueError: it is too short or too plain.
    """
    if len(token) < _LEAST_TOKEN or len(set(token)) < 8:
        raise ValueError(f"a token has at least {_LEAST_TOKEN} characters, at random; `bowerbird tokens add` makes one")


def digest(secret: str) -> str:
    """What is kept of a token or a cookie."""
    return hashlib.sha256(secret.encode()).hexdigest()
