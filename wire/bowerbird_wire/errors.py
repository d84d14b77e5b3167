"""How bytes and names from the other side can be wrong.

Everything here is the peer's doing: the receiver refuses the message with the error's `code`, counts it and goes on.
"""

from __future__ import annotations


class WireError(ValueError):
    """A topic or message that does not follow the protocol. `code` is what a nack carries."""

    code = "malformed"


class TopicError(WireError):
    """A topic of another tree, with a wrong number of levels, or with a name that is not allowed."""

    code = "bad_topic"


class MessageError(WireError):
    """A payload that is not the message its topic promises: truncated, wrong types, missing keys."""

    code = "bad_message"


class VersionError(MessageError):
    """A payload of a schema version that this release does not know; update the older side."""

    code = "unknown_version"


class LengthError(MessageError):
    """A payload whose declared lengths do not match its bytes, or that is larger than is allowed."""

    code = "bad_length"


class DigestError(MessageError):
    """A payload whose content does not have the digest that it declares."""

    code = "digest_mismatch"


class BlockError(MessageError):
    """A chunk that lies outside its message or off its grid of blocks."""

    code = "bad_block"
