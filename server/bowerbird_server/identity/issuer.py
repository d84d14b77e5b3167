"""Who signs device certificates: the site's own authority, or a command of the operator's that asks another CA.

In: a device's name, its request, the generation. Out: leaf and chain as PEM, checked: whatever another CA answers, it is a client
certificate for exactly this key and this name from the authority that the configuration names, or nothing. The command is started
with a list of arguments, never by a shell; the request comes on its standard input, the certificate from its standard output.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from bowerbird_server.errors import EnvironmentFault
from bowerbird_server.identity.authority import Authority, common_name, generation_of, key_pin
from bowerbird_server.identity.requests import DeviceRequest

COMMAND_TIMEOUT_S = 30.0
_MAX_ANSWER_BYTES = 64 * 1024


class Issuer(Protocol):
    """Signs for devices."""

    def issue(self, device: str, request: DeviceRequest, *, generation: int, now: datetime) -> bytes:
        """Leaf and chain, PEM.

        Raises:
            EnvironmentFault: it cannot sign now.
        """

    def verifies(self, leaf: x509.Certificate) -> bool:
        """Whether it signed this one."""


@dataclass(frozen=True)
class OwnIssuer:
    """The site's own authority."""

    authority: Authority

    def issue(self, device: str, request: DeviceRequest, *, generation: int, now: datetime) -> bytes:
        """Leaf and issuing certificate."""
        return self.authority.device_certificate(device, request.public_key, generation=generation, now=now)

    def verifies(self, leaf: x509.Certificate) -> bool:
        """By any issuing authority of the folder, also one that was made since it was opened."""
        return self.authority.verifies(leaf) or Authority.open(self.authority.folder).verifies(leaf)


@dataclass(frozen=True)
class CommandIssuer:
    """Another CA behind a command such as `step ca sign`, an EST client or a script.

    Args:
        argv: the command; `{device}` and `{generation}` in its arguments are replaced, and stand in BOWERBIRD_DEVICE and
            BOWERBIRD_GENERATION as well. It must use that name, not the one in the request.
        trusted: PEM file with the CA certificates that its leaves must come from, each directly above the leaf.
        timeout_s: after which it is ended.
    """

    argv: Sequence[str]
    trusted: Path
    timeout_s: float = COMMAND_TIMEOUT_S

    def issue(self, device: str, request: DeviceRequest, *, generation: int, now: datetime) -> bytes:
        """What the command answers, checked."""
        names = {"{device}": device, "{generation}": str(generation)}
        argv = [_filled(argument, names) for argument in self.argv]
        environment = {**os.environ, "BOWERBIRD_DEVICE": device, "BOWERBIRD_GENERATION": str(generation)}
        try:
            done = subprocess.run(
                argv, input=request.pem, capture_output=True, timeout=self.timeout_s, env=environment, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EnvironmentFault(f"identity.issuer_command {argv[0]} cannot be run: {error}") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise EnvironmentFault(
                f"identity.issuer_command ended with code {done.returncode}: {said[-1][:200] if said else 'it said nothing'}"
            )
        return self._checked(done.stdout, device, request, generation, now)

    def verifies(self, leaf: x509.Certificate) -> bool:
        """Whether one of the trusted CA certificates signed it."""
        for certificate in self._authorities():
            try:
                leaf.verify_directly_issued_by(certificate)
            except Exception:  # noqa: S112 - ValueError, TypeError or InvalidSignature: not by this one
                continue
            return True
        return False

    def _authorities(self) -> list[x509.Certificate]:
        try:
            return x509.load_pem_x509_certificates(self.trusted.read_bytes())
        except (OSError, ValueError) as error:
            raise EnvironmentFault(f"identity.issuer_ca {self.trusted} holds no certificates: {error}") from error

    def _checked(self, pem: bytes, device: str, request: DeviceRequest, generation: int, now: datetime) -> bytes:
        def refuse(why: str) -> EnvironmentFault:
            return EnvironmentFault(
                f"identity.issuer_command answered with a certificate that cannot be used for {device}: {why}"
            )

        try:
            if len(pem) > _MAX_ANSWER_BYTES:
                raise ValueError
            leaf, *chain = x509.load_pem_x509_certificates(pem)
            public_key = leaf.public_key()
            ca = _is_authority(leaf)
            usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except (ValueError, x509.ExtensionNotFound) as error:
            raise refuse("it is no PEM chain with an extended key usage") from error
        if key_pin(public_key) != request.fingerprint:
            raise refuse("it is for another key")
        if common_name(leaf) != device:
            raise refuse(f"it is for {common_name(leaf)[:80]!r}")
        if generation_of(leaf) not in {0, generation}:
            raise refuse("its serialNumber is another generation")
        if ca:
            raise refuse("it is an authority's")
        if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
            raise refuse("it is not for clients (clientAuth)")
        if leaf.not_valid_after_utc <= now:
            raise refuse("it has expired")
        if not self.verifies(leaf):
            raise refuse(f"it does not come from {self.trusted}")
        encoded = [certificate.public_bytes(Encoding.PEM) for certificate in (leaf, *chain)]
        return b"".join(encoded)


def _is_authority(leaf: x509.Certificate) -> bool:
    try:
        return leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _filled(argument: str, names: dict[str, str]) -> str:
    for mark, text in names.items():
        argument = argument.replace(mark, text)
    return argument
