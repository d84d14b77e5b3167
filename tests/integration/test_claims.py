"""Claims and renewals against a real catalogue: who gets a certificate, who does not, and what a retry gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from bowerbird_server.catalogue import Catalogue, fleet
from bowerbird_server.catalogue import identity as rows
from bowerbird_server.errors import Conflict, EnvironmentFault
from bowerbird_server.identity.authority import Authority, common_name, generation_of, key_pin
from bowerbird_server.identity.claims import Claims
from bowerbird_server.identity.issuer import OwnIssuer
from bowerbird_server.identity.states import Happening
from bowerbird_server.identity.tokens import new_token, token_hash
from bowerbird_server.privacy.deletion_log import DeletionLog
from bowerbird_testing.claimant import Claimant, make_request
from bowerbird_wire.claim import Answer

START = datetime(2026, 11, 28, 12, tzinfo=UTC)


@dataclass
class Office:
    """A catalogue, an authority and a clock that a test moves."""

    folder: Path
    cat: Catalogue
    authority: Authority
    now: datetime = field(default=START)

    def __post_init__(self) -> None:
        self.claims = self.claims_of(self.cat)

    def claims_of(self, cat: Catalogue) -> Claims:
        return Claims(cat, OwnIssuer(self.authority), self.authority.root_pem, site="demo", clock=lambda: self.now)

    def invite(
        self, label: str = "", *, serial: str = "", device: str | None = None, approved: bool = True, hours: int = 72
    ) -> str:
        token = new_token()
        rows.invite(
            self.cat,
            token_hash(token),
            site="demo",
            label=label,
            serial=serial,
            device=device,
            approved=approved,
            now=self.now,
            expires=self.now + timedelta(hours=hours),
            actor="test",
        )
        return token

    def enrolled(self, **options: object) -> tuple[Claimant, Answer]:
        board = Claimant()
        answer = self.claims.claim(board.claim(self.invite(**options))).answer  # type: ignore[arg-type]
        assert answer.state == "active"
        return board, answer

    def state(self, device: str) -> str:
        return str(fleet.get(self.cat, device)["state"])


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with Catalogue(tmp_path / "catalogue.db") as cat:
        yield Office(tmp_path, cat, Authority.open(tmp_path / "identity", now=START))


def leaf_of(answer: Answer) -> x509.Certificate:
    return x509.load_pem_x509_certificate(answer.certificate.encode())


def test_a_token_buys_one_certificate_with_a_name_that_the_server_chose(office: Office) -> None:
    board, answer = office.enrolled(label="SN-7")
    leaf = leaf_of(answer)
    assert answer.device.startswith("dev-")
    assert common_name(leaf) == answer.device
    assert (answer.generation, generation_of(leaf)) == (1, 1)
    assert key_pin(leaf.public_key()) == key_pin(board.key.public_key())
    assert answer.ca == office.authority.root_pem.decode()
    assert fleet.get(office.cat, answer.device)["label"] == "SN-7"
    assert office.state(answer.device) == "active"


def test_a_device_that_was_named_beforehand_gets_that_name(office: Office) -> None:
    _, answer = office.enrolled(device="cam-01")
    assert answer.device == "cam-01"


def test_a_known_device_keeps_its_id_when_it_comes_to_have_a_certificate(office: Office) -> None:
    fleet.add_device(office.cat, "cam-01", "demo", "test")
    _, answer = office.enrolled(device="cam-01")
    assert (answer.device, answer.generation) == ("cam-01", 1)


@pytest.mark.parametrize("round_number", range(5))
def test_of_16_claims_on_one_token_at_once_exactly_one_wins(office: Office, round_number: int) -> None:
    token = office.invite()
    boards = [Claimant() for _ in range(16)]
    answers: dict[int, Answer] = {}
    gate = threading.Barrier(16)

    def claim(number: int) -> None:
        with Catalogue(office.folder / "catalogue.db") as cat:
            claims = office.claims_of(cat)
            gate.wait()
            answers[number] = claims.claim(boards[number].claim(token)).answer

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states = sorted(answer.state for answer in answers.values())
    assert states == ["active"] + ["refused"] * 15
    winner = next(number for number, answer in answers.items() if answer.state == "active")
    assert office.claims.claim(boards[winner].claim(token)).answer.certificate == answers[winner].certificate


def test_a_retry_with_the_same_key_gives_the_same_certificate_ten_times(office: Office) -> None:
    board, token = Claimant(), office.invite()
    answers = [office.claims.claim(board.claim(token)).answer for _ in range(10)]
    assert {answer.certificate for answer in answers} == {answers[0].certificate}
    assert len(fleet.list_devices(office.cat)) == 1


def test_a_server_killed_after_the_commit_gives_the_same_answer_when_it_is_back(office: Office) -> None:
    board, token = Claimant(), office.invite()
    lost = office.claims.claim(board.claim(token)).answer
    with Catalogue(office.folder / "catalogue.db") as cat:
        again = office.claims_of(cat).claim(board.claim(token)).answer
    assert again.certificate == lost.certificate


def test_bad_late_and_used_tokens_are_refused_in_the_same_words(office: Office) -> None:
    late, used = office.invite(hours=1), office.invite()
    office.claims.claim(Claimant().claim(used))
    office.now += timedelta(hours=1)
    answers = [office.claims.claim(Claimant().claim(token)).answer for token in (late, used, new_token(), "", "x" * 500)]
    assert len({(answer.state, answer.detail, answer.device) for answer in answers}) == 1
    assert answers.pop().state == "refused"


def test_a_token_is_good_to_its_last_second_and_late_by_none(office: Office) -> None:
    token = office.invite(hours=1)
    office.now += timedelta(hours=1)
    assert office.claims.claim(Claimant().claim(token)).answer.state == "refused"
    office.now -= timedelta(seconds=1)
    assert office.claims.claim(Claimant().claim(token)).answer.state == "active"


def test_a_retry_after_the_token_has_expired_is_still_answered(office: Office) -> None:
    board, token = Claimant(), office.invite(hours=1)
    first = office.claims.claim(board.claim(token)).answer
    office.now += timedelta(hours=2)
    assert office.claims.claim(board.claim(token)).answer.certificate == first.certificate


def test_a_second_use_with_another_key_is_refused_and_raises_an_alarm(office: Office) -> None:
    token = office.invite()
    first = office.claims.claim(Claimant().claim(token)).answer
    assert office.claims.claim(Claimant().claim(token)).answer.state == "refused"
    assert [alarm["subject"] for alarm in rows.alarms(office.cat)] == [first.device]
    assert office.state(first.device) == "active"


def test_tokens_are_nowhere_in_the_catalogue(office: Office) -> None:
    token = office.invite()
    office.claims.claim(Claimant().claim(token))
    content = b"".join(path.read_bytes() for path in office.folder.glob("catalogue.db*"))
    assert token.encode() not in content


@pytest.mark.parametrize(
    ("reason", "request_of"),
    [
        ("weak-key", lambda: make_request(rsa.generate_private_key(65537, 1024))),  # noqa: S505
        ("weak-key", lambda: make_request(rsa.generate_private_key(65537, 2048))),
        ("weak-key", lambda: make_request(ec.generate_private_key(ec.SECP192R1()))),
        ("reserved-name", lambda: make_request(ec.generate_private_key(ec.SECP256R1()), name="bowerbird-server")),
        ("reserved-name", lambda: make_request(ec.generate_private_key(ec.SECP256R1()), name="SVC-delivery")),
        ("wildcard-name", lambda: make_request(ec.generate_private_key(ec.SECP256R1()), name="#")),
        ("wildcard-name", lambda: make_request(ec.generate_private_key(ec.SECP256R1()), name="demo/+/x")),
        ("wildcard-name", lambda: make_request(ec.generate_private_key(ec.SECP256R1()), name="$SYS")),
        ("unicode-name", lambda: make_request(ec.generate_private_key(ec.SECP256R1()), name="саm-01")),
        ("unicode-name", lambda: make_request(ec.generate_private_key(ec.SECP256R1()), name="cam 01\n")),
        ("long-name", lambda: make_request(ec.generate_private_key(ec.SECP256R1()), name="a" * 64)),
        (
            "authority",
            lambda: make_request(
                ec.generate_private_key(ec.SECP256R1()), extensions=[x509.BasicConstraints(ca=True, path_length=None)]
            ),
        ),
        (
            "foreign-name",
            lambda: make_request(
                ec.generate_private_key(ec.SECP256R1()), extensions=[x509.SubjectAlternativeName([x509.DNSName("broker")])]
            ),
        ),
        (
            "extension",
            lambda: make_request(
                ec.generate_private_key(ec.SECP256R1()),
                extensions=[x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])],
            ),
        ),
        ("not-a-request", lambda: "hello"),
        ("not-a-request", lambda: "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"),
        ("too-large", lambda: "x" * 5000),
    ],
)
def test_a_request_that_wants_too_much_is_refused_by_name_and_the_token_stays_good(
    office: Office, reason: str, request_of: object
) -> None:
    token = office.invite()
    answer = office.claims.claim(Claimant().claim(token, request_of())).answer  # type: ignore[operator]
    assert (answer.state, answer.certificate) == (reason, "")
    assert office.claims.claim(Claimant().claim(token)).answer.state == "active"


def test_a_request_whose_signature_is_another_keys_is_refused(office: Office) -> None:
    good = x509.load_pem_x509_csr(make_request(ec.generate_private_key(ec.SECP256R1())).encode())
    from cryptography.hazmat.primitives.serialization import Encoding

    der = bytearray(good.public_bytes(Encoding.DER))
    der[-1] ^= 1
    import base64

    body = base64.encodebytes(bytes(der)).decode()
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"
    assert office.claims.claim(Claimant().claim(office.invite(), pem)).answer.state in ("signature", "not-a-request")


def test_nobody_without_a_token_learns_what_is_wrong_with_a_request(office: Office) -> None:
    assert office.claims.claim(Claimant().claim(new_token(), "hello")).answer.state == "refused"


def test_a_token_for_one_serial_number_is_no_good_for_another(office: Office) -> None:
    token = office.invite(serial="A1")
    assert office.claims.claim(Claimant(serial="B2").claim(token)).answer.state == "refused"
    assert office.claims.claim(Claimant(serial="A1").claim(token)).answer.state == "active"


def test_a_device_that_waits_for_a_person_gets_its_certificate_after_the_approval(office: Office) -> None:
    board, token = Claimant(), office.invite(approved=False)
    waiting = office.claims.claim(board.claim(token)).answer
    assert (waiting.state, waiting.certificate) == ("pending", "")
    assert waiting.device not in fleet.active_devices(office.cat)
    rows.change_state(office.cat, waiting.device, Happening.APPROVED, "test")
    office.now += timedelta(days=5)  # long after the token's end
    assert office.claims.claim(board.claim(token)).answer.state == "active"


def test_two_devices_with_one_serial_number_raise_an_alarm_and_the_second_waits(office: Office) -> None:
    first = office.claims.claim(Claimant(serial="A1").claim(office.invite())).answer
    second = office.claims.claim(Claimant(serial="A1").claim(office.invite())).answer
    assert (first.state, second.state) == ("active", "pending")
    assert rows.alarms(office.cat)[0]["why"]["other"] == first.device


def test_a_new_board_in_the_same_place_is_another_device_with_the_same_cameras(office: Office) -> None:
    old = office.claims.claim(Claimant(serial="A1").claim(office.invite())).answer.device
    fleet.touch_camera(office.cat, old, "gate")
    board, token = Claimant(serial="A1"), office.invite()
    new = office.claims.claim(board.claim(token)).answer.device
    rows.replace(office.cat, old, new, "test")
    rows.change_state(office.cat, new, Happening.APPROVED, "test")
    fleet.touch_camera(office.cat, new, "gate")
    assert office.state(old) == "retired"
    assert office.claims.claim(board.claim(token)).answer.device == new != old
    places = {row["device"]: row["place"] for row in office.cat.rows("SELECT device, place FROM camera")}
    assert places[new] == places[old] == f"{old}/gate"


def test_a_retired_device_stays_retired(office: Office) -> None:
    board, answer = office.enrolled()
    rows.change_state(office.cat, answer.device, Happening.RETIRED, "test")
    assert office.claims.renew(board.renewal(answer, Claimant())).answer.state == "refused"
    with pytest.raises(Conflict):
        rows.change_state(office.cat, answer.device, Happening.RESUMED, "test")


# --- renewal ---------------------------------------------------------------------------------------------------------------


def test_a_renewal_is_the_next_generation_for_a_new_key(office: Office) -> None:
    board, answer = office.enrolled()
    office.now += timedelta(days=30)
    new = Claimant()
    renewed = office.claims.renew(board.renewal(answer, new)).answer
    assert (renewed.state, renewed.device, renewed.generation) == ("active", answer.device, 2)
    assert key_pin(leaf_of(renewed).public_key()) == key_pin(new.key.public_key())


def test_a_lost_answer_is_given_again_to_the_same_key(office: Office) -> None:
    board, answer = office.enrolled()
    request = board.renewal(answer, Claimant())
    answers = [office.claims.renew(request).answer for _ in range(10)]
    assert {each.certificate for each in answers} == {answers[0].certificate}


def test_a_device_that_lost_the_new_key_as_well_gets_another_while_the_first_was_never_used(office: Office) -> None:
    board, answer = office.enrolled()
    office.claims.renew(board.renewal(answer, Claimant()))
    again = office.claims.renew(board.renewal(answer, Claimant())).answer
    assert (again.state, again.generation) == ("active", 2)


def test_an_old_generation_that_renews_after_its_successor_was_used_is_a_clone(office: Office) -> None:
    board, answer = office.enrolled()
    office.claims.renew(board.renewal(answer, Claimant()))
    rows.note_seen(office.cat, answer.device, 2)
    outcome = office.claims.renew(board.renewal(answer, Claimant()))
    assert (outcome.answer.state, outcome.access_changed) == ("suspended", True)
    assert office.state(answer.device) == "suspended"
    assert rows.alarms(office.cat)[0]["subject"] == answer.device


def test_a_renewal_without_proof_of_the_old_key_is_refused(office: Office) -> None:
    board, answer = office.enrolled()
    thief = ec.generate_private_key(ec.SECP256R1())
    assert office.claims.renew(board.renewal(answer, Claimant(), signer=thief)).answer.state == "proof"


def test_a_proof_is_good_for_no_other_request(office: Office) -> None:
    from dataclasses import replace

    board, answer = office.enrolled()
    request = board.renewal(answer, Claimant())
    assert office.claims.renew(replace(request, request=make_request(Claimant().key))).answer.state == "proof"


def test_a_certificate_of_another_authority_renews_nothing(office: Office, tmp_path: Path) -> None:
    board, answer = office.enrolled()
    other = Authority.open(tmp_path / "other", now=START)
    from dataclasses import replace

    forged = other.device_certificate(answer.device, board.key.public_key(), generation=1, now=START)
    assert (
        office.claims.renew(board.renewal(replace(answer, certificate=forged.decode()), Claimant())).answer.state == "refused"
    )


@pytest.mark.parametrize(("days", "state"), [(60, "active"), (89, "active"), (91, "claim-again"), (120, "claim-again")])
def test_an_expired_certificate_renews_for_90_days(office: Office, days: int, state: str) -> None:
    board, answer = office.enrolled()
    office.now = leaf_of(answer).not_valid_after_utc + timedelta(days=days)
    assert office.claims.renew(board.renewal(answer, Claimant())).answer.state == state


def test_a_suspended_device_neither_renews_nor_claims(office: Office) -> None:
    board, token = Claimant(), office.invite(device="cam-01")
    answer = office.claims.claim(board.claim(token)).answer
    rows.change_state(office.cat, "cam-01", Happening.SUSPENDED, "test")
    assert office.claims.renew(board.renewal(answer, Claimant())).answer.state == "suspended"
    assert office.claims.claim(board.claim(token)).answer.state == "refused"
    assert office.claims.claim(Claimant().claim(office.invite(device="cam-01"))).answer.state == "refused"


def test_a_ca_that_rolls_while_half_the_fleet_is_offline_loses_nobody(office: Office) -> None:
    fleet_of = [office.enrolled() for _ in range(6)]
    online, offline = fleet_of[:3], fleet_of[3:]
    office.authority = office.authority.roll(office.authority.folder / "root.key", now=office.now)
    office.claims = office.claims_of(office.cat)
    office.now += timedelta(days=30)
    for board, answer in online:
        renewed = office.claims.renew(board.renewal(answer, Claimant())).answer
        assert leaf_of(renewed).issuer != leaf_of(answer).issuer
    office.now += timedelta(days=60)
    for board, answer in offline:
        assert office.claims.renew(board.renewal(answer, Claimant())).answer.state == "active"


def test_a_device_newer_than_a_restored_catalogue_is_adopted(office: Office) -> None:
    board, answer = office.enrolled()
    second = Claimant()
    renewed = office.claims.renew(board.renewal(answer, second)).answer
    office.cat.execute("DELETE FROM certificate WHERE generation = 2")  # the backup was made before
    assert office.claims.renew(second.renewal(renewed, Claimant())).answer.generation == 3


def test_a_device_that_a_restored_catalogue_does_not_know_waits_for_a_person(office: Office) -> None:
    """Enrolled after the backup: it is neither locked out for ever nor let in by itself."""
    board, answer = office.enrolled()
    office.cat.execute("DELETE FROM certificate")
    office.cat.execute("DELETE FROM invitation")
    office.cat.execute("DELETE FROM device")
    for _ in range(2):
        waiting = office.claims.renew(board.renewal(answer, Claimant())).answer
        assert (waiting.state, waiting.device) == ("pending", answer.device)
    assert office.cat.value("SELECT count(*) FROM event WHERE kind = 'alarm' AND subject = ?", answer.device) == 1
    rows.change_state(office.cat, answer.device, Happening.APPROVED, "ada")
    renewed = office.claims.renew(board.renewal(answer, Claimant())).answer
    assert (renewed.state, renewed.generation) == ("active", 2)


def test_a_stranger_with_a_certificate_of_another_authority_is_not_adopted(office: Office, tmp_path: Path) -> None:
    board, answer = office.enrolled()
    office.cat.execute("DELETE FROM certificate")
    office.cat.execute("DELETE FROM invitation")
    office.cat.execute("DELETE FROM device")
    office.claims = Claims(
        office.cat, OwnIssuer(Authority.open(tmp_path / "other")), b"", site="demo", clock=lambda: office.now
    )
    assert office.claims.renew(board.renewal(answer, Claimant())).answer.state == "refused"
    assert office.cat.value("SELECT count(*) FROM device") == 0


def test_who_was_shut_out_after_the_backup_stays_out_of_the_restored_site(office: Office) -> None:
    """Known to the backup or not, suspended or retired; and who was let in again since is let in."""
    devices = [office.enrolled()[1].device for _ in range(4)]
    suspended, retired, resumed, later = devices
    for device in (suspended, resumed):
        rows.change_state(office.cat, device, Happening.SUSPENDED, "ada")
    for device in (retired, later):
        rows.change_state(office.cat, device, Happening.RETIRED, "ada")
    rows.change_state(office.cat, resumed, Happening.RESUMED, "ada")
    log = DeletionLog.beside(office.cat.path).read()
    office.cat.execute("UPDATE device SET state = 'active'")  # the backup was made before
    office.cat.execute("DELETE FROM certificate WHERE device = ?", later)
    office.cat.execute("DELETE FROM invitation WHERE device = ?", later)
    office.cat.execute("DELETE FROM device WHERE id = ?", later)
    rows.shut_out_again(office.cat, log, "restore")
    states = {row["id"]: row["state"] for row in office.cat.rows("SELECT id, state FROM device")}
    assert states == {suspended: "suspended", retired: "retired", resumed: "active", later: "retired"}


def test_a_ca_that_cannot_sign_uses_up_no_token(office: Office) -> None:
    class Broken(OwnIssuer):
        def issue(self, *_: object, **__: object) -> bytes:
            raise EnvironmentFault("no CA today")

    board, token = Claimant(), office.invite()
    with pytest.raises(EnvironmentFault):
        Claims(office.cat, Broken(office.authority), b"", clock=lambda: office.now).claim(board.claim(token))
    assert office.claims.claim(board.claim(token)).answer.state == "active"
