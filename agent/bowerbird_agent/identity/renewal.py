"""A certificate renews itself at two thirds of its life: with a new key, proved by the old one, while the old one stays good.

In: the identity's folder, the time. Out: the next generation beside the present one. Whatever interrupts it, nothing is lost:
the new key is on disk before it is sent, the server answers the same key again, and the old file goes only when the new one is
two days old.
"""

from __future__ import annotations

import base64
import logging
import random
import secrets
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from bowerbird_agent.errors import AgentError
from bowerbird_agent.identity.claim_client import post_to_any
from bowerbird_agent.identity.enrolment import EnrolmentRefused, clear_rests, make_request, read_claim_urls, request_pem
from bowerbird_agent.identity.identity import (
    FOLDER,
    RENEWAL_KEY,
    Identity,
    IdentityError,
    drop_pending_key,
    forget_old,
    leaf_of,
    load_identity,
    load_key,
    only_one,
    pending_key,
    store_identity,
)
from bowerbird_wire.claim import CLAIM_AGAIN, REFUSED, RENEW_PATH, SUSPENDED, RenewRequest, renewal_bytes, to_json

if TYPE_CHECKING:
    from bowerbird_agent.config import AgentConfig

logger = logging.getLogger(__name__)

SHARE_OF_LIFE = 2 / 3
JITTER_SHARE = 1 / 12  # of its life: a fleet that was enrolled in one day does not renew in one hour
LOOK_EVERY_S = 900.0
FIRST_RETRY_S, LAST_RETRY_S = 60.0, 6 * 3600.0
_UTC = timezone.utc
_START = secrets.token_hex(6)


def renewals_of(config: AgentConfig, on_renewed: Callable[[Identity], None], denied: Callable[[], bool]) -> Renewals | None:
    """What keeps this device's certificate fresh, None where it has none of its own or nobody renews it."""
    folder = config.device.state_dir / FOLDER
    if not config.broker.tls or config.broker.certificate_file is not None or not read_claim_urls(folder):
        return None
    return Renewals(folder, on_renewed, denied=denied)


def identity_facts(config: AgentConfig, take_overs: int, attempt: tuple[int, str]) -> dict[str, object]:
    """What the status says of this device's identity, nothing without one; `start` is another one at each start of the agent, and
    `connection` and `link` (see `MqttLink.attempt`) another at each connection, so that two that run at once are told apart.
    """
    try:
        generation = load_identity(config.device.state_dir / FOLDER).generation
    except (AgentError, OSError):
        return {}
    number, link = attempt
    facts: dict[str, object] = {"generation": generation, "start": _START, "connection": number, "link": link}
    return {**facts, **({"take_overs": take_overs} if take_overs else {})}


def due_at(identity: Identity) -> datetime:
    """When to renew; the jitter hangs on name and generation, so that a restart does not throw the dice again."""
    life = identity.not_after - identity.not_before
    digest = sha256(f"{identity.device} {identity.generation}".encode()).digest()
    jitter = int.from_bytes(digest[:4], "big") / 2**32
    return identity.not_before + life * (SHARE_OF_LIFE - JITTER_SHARE / 2 + JITTER_SHARE * jitter)


def renew(folder: Path) -> Identity:
    """Renew once; returns the new identity.

    Raises:
        ClaimFault: nobody answered.
        EnrolmentRefused: the server says no.
        IdentityError: there is no identity to renew, or another process is at it.
        OSError: the disk refused; the old identity is as it was.
    """
    with only_one(folder):
        clear_rests(folder)
        present = load_identity(folder)
        urls = read_claim_urls(folder)
        if not urls:
            raise IdentityError(f"{folder}/claim-urls is missing, so nobody knows where to renew; enrol the device again")
        content = present.certificate_file.read_bytes()
        key_pem = pending_key(folder, RENEWAL_KEY)
        if _is_key_of(key_pem, content):  # killed between the new file's name and the end of the pending key
            drop_pending_key(folder, RENEWAL_KEY)
            key_pem = pending_key(folder, RENEWAL_KEY)
        body = to_json(_request(present, content, key_pem))
        ca_pem = present.ca_file.read_text("ascii")
        _, heard = post_to_any(urls, RENEW_PATH, body, ca_pem)
        answer = heard.answer
        if answer.state != "active":
            raise EnrolmentRefused(answer.state, _refusal(answer.state, answer.detail))
        if answer.device != present.device:
            raise IdentityError(
                f"the server answered for {answer.device[:80]!r}, this is {present.device}; nothing was changed"
            )
        ca = answer.ca.encode() if answer.ca else ca_pem.encode()
        renewed = store_identity(folder, answer.generation, key_pem, answer.certificate.encode(), ca)
        drop_pending_key(folder, RENEWAL_KEY)
    return renewed


class Renewals:
    """Looks now and then whether it is time, and renews; started by the running agent.

    Args:
        folder: of the identity.
        on_renewed: told of the new identity; the link should connect anew when it suits.
        denied: whether the broker passes nothing of this device on; then the server is asked, which may have been restored from a
            time before this certificate.
        now: aware time.
        chance: [0, 1), for the retries.
    """

    def __init__(
        self,
        folder: Path,
        on_renewed: Callable[[Identity], None],
        *,
        denied: Callable[[], bool] = lambda: False,
        now: Callable[[], datetime] = lambda: datetime.now(tz=_UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._folder, self._on_renewed, self._denied, self._now, self._chance = folder, on_renewed, denied, now, chance
        self._stop = threading.Event()
        self._failures = 0
        self._thread: threading.Thread | None = None
        self.trouble = ""

    def start(self) -> None:
        """Begin, in a thread of its own; nothing else waits for it."""
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)
        self._thread.start()

    def stop(self, *, timeout_s: float = 1.0) -> None:
        """End; a request that is under way is left to itself, which loses nothing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def look(self) -> float:
        """Renew if it is time; returns seconds until the next look."""
        try:
            identity = load_identity(self._folder, now=self._now())
            for name in forget_old(self._folder, identity, now=self._now()):
                logger.info("identity %s is no longer needed", name)
            if self._now() < due_at(identity) and not self._denied():
                self._failures, self.trouble = 0, ""
                return LOOK_EVERY_S
            renewed = renew(self._folder)
        except (AgentError, OSError) as error:
            return self._failed(error)
        self._failures, self.trouble = 0, ""
        logger.info("the certificate was renewed: generation %s, good until %s", renewed.generation, renewed.not_after)
        self._on_renewed(renewed)
        return LOOK_EVERY_S

    def _failed(self, error: Exception) -> float:
        self.trouble = f"the certificate cannot be renewed: {error}"
        logger.log(logging.DEBUG if self._failures else logging.WARNING, "%s", self.trouble)
        pause_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self._failures, 20))
        self._failures += 1
        return float(pause_s * (0.5 + self._chance() / 2))

    def _run(self) -> None:
        pause_s = 0.0
        while not self._stop.wait(pause_s):
            try:
                pause_s = self.look()
            except Exception:
                logger.exception("the renewal failed by an error of ours; the certificate is as it was")
                pause_s = LAST_RETRY_S


def _request(present: Identity, content: bytes, key_pem: bytes) -> RenewRequest:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    der = make_request(load_key(key_pem))
    signed = load_key(content).sign(renewal_bytes(present.device, present.generation, der), ec.ECDSA(hashes.SHA256()))
    leaf = leaf_of(content).public_bytes(Encoding.PEM).decode()
    return RenewRequest(leaf, request_pem(der), base64.b64encode(signed).decode())


def _is_key_of(key_pem: bytes, content: bytes) -> bool:
    return load_key(key_pem).private_numbers() == load_key(content).private_numbers()


def _refusal(state: str, detail: str) -> str:
    return {
        REFUSED: "the server does not know this certificate any more, or the device is retired; invite it again",
        SUSPENDED: f"the device is suspended at the server: {detail}",
        CLAIM_AGAIN: detail,
    }.get(state, f"the server refuses the renewal ({state}): {detail}")
