"""How this device speaks TLS with its broker: which CA it trusts and which certificate it shows, looked up at each connection.

In: the configuration's `broker` table and the state folder. Out: `ssl.SSLContext`, TLS 1.2 or newer, host name checked; and
what is wrong with dates and clock, in words. It makes no connection and renews nothing.
"""

from __future__ import annotations

import ssl
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from bowerbird_agent.errors import AgentError
from bowerbird_agent.identity.identity import CA_NAME, FOLDER, NoIdentity, load_identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from bowerbird_agent.link.config import BrokerConfig

UTC = timezone.utc


class NoTls(AgentError):
    """TLS cannot be spoken with what is here; the text says what to do."""


def tls_of(broker: BrokerConfig, state_dir: Path) -> Callable[[], ssl.SSLContext] | None:
    """-> the context for the next connection, or None where the configuration wants none."""
    return (lambda: make_context(broker, state_dir)) if broker.tls else None


def make_context(broker: BrokerConfig, state_dir: Path) -> ssl.SSLContext:
    """Certificate and CA as they are on disk now.

    Raises:
        NoTls: a file is missing or is not what it should be, or this device has no identity.
        AgentError: the identity cannot be used.
    """
    folder = state_dir / FOLDER
    certificate, ca = broker.certificate_file, broker.ca_file
    if certificate is None:
        try:
            certificate = load_identity(folder).certificate_file
        except NoIdentity:
            if broker.password_file is None:
                raise NoTls(
                    f"this device has no certificate in {folder}; run `bowerbird-agent enrol BUNDLE`, or set "
                    "broker.certificate_file, or broker.tls = false for a broker without TLS"
                ) from None
    if ca is None and (folder / CA_NAME).exists():
        ca = folder / CA_NAME
    context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        try:
            context.load_cert_chain(certificate)
        except (OSError, ssl.SSLError) as error:
            raise NoTls(f"{certificate} holds no key and certificate that can be used: {error}") from error
    return context


def date_fault(broker: BrokerConfig, state_dir: Path, now: datetime) -> str:
    """What is wrong with the dates of this device's own certificate by this clock, empty when nothing is."""
    if not broker.tls or broker.certificate_file is not None:
        return ""
    try:
        identity = load_identity(state_dir / FOLDER, now=now)
    except AgentError as error:
        return str(error) if broker.password_file is None else ""
    if now >= identity.not_after:
        return (
            f"the certificate expired on {identity.not_after:%Y-%m-%d %H:%M} UTC, or this clock ({now:%Y-%m-%d %H:%M}) is ahead"
        )
    if now < identity.not_before:
        return f"the certificate is valid from {identity.not_before:%Y-%m-%d %H:%M} UTC, this clock says {now:%Y-%m-%d %H:%M}; set it"
    return ""
