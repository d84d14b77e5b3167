"""One-time claim tokens: 192 random bits, shown once, stored as a hash.

In: nothing, or a token's text. Out: a token; its hash; a QR code. A fast hash is enough
where nobody can guess: there is no dictionary of 2^192 entries.
"""

from __future__ import annotations

import hashlib
import io
import secrets

TOKEN_BYTES = 24  # 192 bits


def new_token() -> str:
    """32 characters of base64url."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def token_hash(token: str) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def qr_text(content: str) -> str:
    """A QR code for a terminal, in half blocks."""
    import segno

    drawn = io.StringIO()
    segno.make(content, error="m", micro=False).terminal(out=drawn, compact=True)
    return drawn.getvalue()
