"""Who gets a certificate: the decisions behind the claim listener, each in one transaction of the catalogue.

In: claims and renewals as the wire has them, the catalogue, an issuer, the time. Out: an answer, and rows that say the same after a
restart: the commit comes before the answer, so that a device whose answer was lost asks again with the same key and gets the same.
What is refused without a name is refused in the same words whatever the reason. It knows no HTTP and reloads no broker.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cryptography import x509

from bowerbird_server.catalogue import identity as rows
from bowerbird_server.catalogue.core import Catalogue, Row, new_id
from bowerbird_server.catalogue.fleet import get
from bowerbird_server.errors import BadInput, NotFound
from bowerbird_server.identity.authority import common_name, generation_of, is_reserved, key_pin
from bowerbird_server.identity.clones import judge_renewal
from bowerbird_server.identity.issuer import Issuer
from bowerbird_server.identity.report_check import signs_reports
from bowerbird_server.identity.requests import DeviceRequest, RequestRefused, check_proof, read_request
from bowerbird_server.identity.states import Happening, State
from bowerbird_server.identity.tokens import token_hash
from bowerbird_wire.claim import (
    BUSY,
    CLAIM_AGAIN,
    MAX_TEXT,
    REFUSED,
    SETUP,
    SUSPENDED,
    Answer,
    ClaimRequest,
    RenewRequest,
)

RENEW_EXPIRED = timedelta(days=90)  # so long after its end the old key still proves who asks
PENDING_RETRY_S = 10.0
_ACTOR = "claim"
_TRIES = 3


def _now() -> datetime:
    return datetime.now(tz=UTC)


@dataclass(frozen=True)
class Outcome:
    """An answer, and whether the broker must hear of a change."""

    answer: Answer
    access_changed: bool = False


@dataclass(frozen=True)
class _Due:
    """A certificate that may be issued: signing may take long with another CA, and the catalogue has other writers."""

    device: str
    request: DeviceRequest
    generation: int
    newest: int  # the newest generation when this was decided


class Claims:
    """Answers claims and renewals.

    Args:
        cat: the catalogue, of the calling thread.
        issuer: signs for devices.
        ca_pem: what devices trust.
        site: where a device belongs that has a certificate of ours and is not in the catalogue; "" lets none such in.
        clock: aware time now.
    """

    def __init__(
        self, cat: Catalogue, issuer: Issuer, ca_pem: bytes, *, site: str = "", clock: Callable[[], datetime] = _now
    ) -> None:
        self._cat, self._issuer, self._ca, self._site, self._clock = cat, issuer, ca_pem.decode(), site, clock

    def claim(self, asked: ClaimRequest) -> Outcome:
        """A certificate for a token."""
        now = self._clock()
        for _ in range(_TRIES):
            with self._cat.transaction():
                decided = self._claimed(asked, now)
            outcome = decided if isinstance(decided, Outcome) else self._issue(decided, now)
            if outcome is not None:
                return self._with_setup(outcome, asked.token)
        return Outcome(self._plain(BUSY, now, retry_after_s=PENDING_RETRY_S))

    def _with_setup(self, outcome: Outcome, token: str) -> Outcome:
        """With the certificate goes what a bundle would have told the board: it may have had the text of a QR code only."""
        found = rows.invitation(self._cat, token_hash(token)) if outcome.answer.state == State.ACTIVE else None
        if found is None or not found["setup"]:
            return outcome
        return replace(outcome, answer=replace(outcome.answer, extra={SETUP: json.loads(found["setup"])}))

    def renew(self, asked: RenewRequest) -> Outcome:
        """A certificate for its predecessor's key."""
        now = self._clock()
        try:
            leaf = x509.load_pem_x509_certificate(asked.certificate.encode())
            device, generation = common_name(leaf), generation_of(leaf)
        except (ValueError, x509.InvalidVersion):
            return self._refuse(now)
        if not device or is_reserved(device) or not self._issuer.verifies(leaf):
            return self._refuse(now)
        # Another CA's certificates need not say their generation; the key does.
        generation = rows.generation_of_key(self._cat, device, key_pin(leaf.public_key())) or generation
        try:
            request = read_request(asked.request)
            check_proof(leaf, device, generation, request, asked.proof)
        except RequestRefused as error:
            return Outcome(self._plain(error.reason, now, detail=str(error)))
        for _ in range(_TRIES):
            with self._cat.transaction():
                decided = self._renewal(device, generation, leaf, request, now)
            outcome = decided if isinstance(decided, Outcome) else self._issue(decided, now)
            if outcome is not None:
                return outcome
        return Outcome(self._plain(BUSY, now, retry_after_s=PENDING_RETRY_S))

    # --- inside a transaction ------------------------------------------------------------------------------------------

    def _claimed(self, asked: ClaimRequest, now: datetime) -> Outcome | _Due:
        found = rows.invitation(self._cat, token_hash(asked.token))
        if found is None:
            return self._refuse(now)
        if found["state"] == "withdrawn" or (found["state"] == "open" and rows.time_of(found["expires_at"]) <= now):
            return self._refuse(now)
        if found["serial"] and found["serial"] != asked.serial:
            self._cat.log(_ACTOR, "claim refused", found["id"], {"why": "another serial number", "serial": asked.serial[:80]})
            return self._refuse(now)
        # Only who holds a token is told what is wrong with a request; and the token stays good.
        try:
            request = read_request(asked.request)
        except RequestRefused as error:
            if found["state"] == "claimed":
                return self._refuse(now)
            self._cat.log(_ACTOR, "claim refused", found["id"], {"why": error.reason})
            return Outcome(self._plain(error.reason, now, detail=str(error)))
        if found["state"] == "claimed" and found["key_sha256"] != request.fingerprint:
            rows.alarm(self._cat, found["device"] or found["id"], "a claim token was used again with another key")
            return self._refuse(now)
        device = self._take(found, asked, request, now) if found["state"] == "open" else str(found["device"])
        return self._refuse(now) if device is None else self._answer(device, request, now)

    def _take(self, found: Row, asked: ClaimRequest, request: DeviceRequest, now: datetime) -> str | None:
        """Bind an open invitation to a key; the device's id, None when its device cannot have another certificate."""
        serial = asked.serial[:MAX_TEXT]
        device = found["device"]
        if device is None:
            device = f"dev-{new_id()}"
            rows.add_pending(self._cat, device, site=found["site"], label=found["label"], serial=serial, actor=_ACTOR)
        else:
            try:
                if get(self._cat, device)["state"] in (State.RETIRED, State.SUSPENDED):
                    return None
            except NotFound:
                rows.add_pending(self._cat, device, site=found["site"], label=found["label"], serial=serial, actor=_ACTOR)
            rows.note_serial(self._cat, device, serial)
        rows.note_claimed(self._cat, found["id"], device, request.fingerprint, now)
        rows.note_signs(self._cat, device, signs=signs_reports(asked.agent_version))
        self._cat.log(_ACTOR, "device claimed", device, {"invitation": found["id"], "agent": asked.agent_version[:40]})
        twin = rows.other_with_serial(self._cat, serial, device)
        pending = get(self._cat, device)["state"] == State.PENDING
        if twin is not None:
            rows.alarm(self._cat, device, "two devices say the same serial number", {"serial": serial, "other": twin})
        elif pending and found["approved"]:
            rows.change_state(self._cat, device, Happening.APPROVED, _ACTOR, "invited with approval")
        return str(device)

    def _adopt(self, device: str, now: datetime) -> Outcome:
        """A device that proved a certificate of ours and is in no row: the catalogue was restored from before it came. A person says
        whether it belongs here; what was shut out since that backup is in the log of deletions and has a row."""
        if not self._site:
            return self._refuse(now)
        try:
            rows.add_pending(self._cat, device, site=self._site, label="", serial="", actor=_ACTOR)
        except BadInput:  # another CA may have signed any name
            return self._refuse(now)
        rows.alarm(
            self._cat, device, "its certificate is this site's, and the catalogue does not know it: is the catalogue older?"
        )
        return self._waits(device, now)

    def _waits(self, device: str, now: datetime) -> Outcome:
        detail = f"waits for a person: bowerbird devices approve {device}"
        return Outcome(self._plain(State.PENDING, now, detail=detail, device=device, retry_after_s=PENDING_RETRY_S))

    def _answer(self, device: str, request: DeviceRequest, now: datetime) -> Outcome | _Due:
        state = get(self._cat, device)["state"]
        if state == State.PENDING:
            return self._waits(device, now)
        if state != State.ACTIVE:
            return self._refuse(now)
        newest = rows.newest_certificate(self._cat, device)
        if newest is not None and newest["key_sha256"] == request.fingerprint:
            return Outcome(self._active(device, newest["generation"], newest["pem"], now))
        if newest is not None and self._was_issued(device, request):
            return self._refuse(now)  # this claim was answered long ago, and the device has renewed since
        known = int(newest["generation"]) if newest else 0
        return _Due(device, request, known + 1, known)

    def _was_issued(self, device: str, request: DeviceRequest) -> bool:
        return any(row["key_sha256"] == request.fingerprint for row in rows.certificates(self._cat, device))

    def _renewal(
        self, device: str, generation: int, leaf: x509.Certificate, request: DeviceRequest, now: datetime
    ) -> Outcome | _Due:
        try:
            state = get(self._cat, device)["state"]
        except NotFound:
            return self._adopt(device, now)
        newest = rows.newest_certificate(self._cat, device)
        if state == State.SUSPENDED:
            return Outcome(self._plain(SUSPENDED, now, detail="a person has to resume this device at the server"))
        if state == State.PENDING:
            return self._waits(device, now)
        if state != State.ACTIVE:
            return self._refuse(now)
        if now - leaf.not_valid_after_utc > RENEW_EXPIRED:
            detail = f"it expired more than {RENEW_EXPIRED.days} days ago: invite the device again"
            return Outcome(self._plain(CLAIM_AGAIN, now, detail=detail))
        if newest is None or generation > newest["generation"]:
            # The catalogue was restored from before this certificate. It is ours and its key was proved: go on from there.
            return _Due(device, request, generation + 1, int(newest["generation"]) if newest else 0)
        suspicion = judge_renewal(
            generation=generation,
            key=request.fingerprint,
            current=newest["generation"],
            current_key=newest["key_sha256"],
            current_seen=newest["seen_at"] is not None,
        )
        if suspicion:
            rows.change_state(self._cat, device, Happening.SUSPECTED, _ACTOR, suspicion)
            rows.alarm(self._cat, device, suspicion)
            return Outcome(
                self._plain(SUSPENDED, now, detail="a person has to resume this device at the server"), access_changed=True
            )
        if generation == newest["generation"]:
            rows.note_seen(self._cat, device, generation)
            return _Due(device, request, generation + 1, generation)
        if request.fingerprint == newest["key_sha256"]:
            return Outcome(self._active(device, newest["generation"], newest["pem"], now))
        return _Due(device, request, int(newest["generation"]), int(newest["generation"]))

    def _issue(self, due: _Due, now: datetime) -> Outcome | None:
        """Sign, then note it; None when the catalogue has moved on in the meantime and the decision must be made again."""
        pem = self._issuer.issue(due.device, due.request, generation=due.generation, now=now)
        leaf = x509.load_pem_x509_certificate(pem)
        with self._cat.transaction():
            newest = rows.newest_certificate(self._cat, due.device)
            if get(self._cat, due.device)["state"] != State.ACTIVE or (newest["generation"] if newest else 0) != due.newest:
                return None
            rows.put_certificate(
                self._cat,
                due.device,
                due.generation,
                key_sha256=due.request.fingerprint,
                pem=pem.decode(),
                now=now,
                not_after=leaf.not_valid_after_utc,
            )
        return Outcome(self._active(due.device, due.generation, pem.decode(), now), access_changed=True)

    # --- answers -------------------------------------------------------------------------------------------------------

    def _active(self, device: str, generation: int, pem: str, now: datetime) -> Answer:
        site = str(get(self._cat, device)["site"])
        return Answer(
            State.ACTIVE,
            device=device,
            site=site,
            generation=generation,
            certificate=pem,
            ca=self._ca,
            server_time=rows.text_of(now),
        )

    def _plain(self, state: str, now: datetime, *, detail: str = "", device: str = "", retry_after_s: float = 0.0) -> Answer:
        return Answer(state, detail=detail, device=device, server_time=rows.text_of(now), retry_after_s=retry_after_s)

    def _refuse(self, now: datetime) -> Outcome:
        return Outcome(self._plain(REFUSED, now))
