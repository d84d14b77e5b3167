"""Reports in a device's name that are not its own, as somebody who holds the broker could send them: none changes anything.

The device is real: enrolled by the claim office, its identity a file, its reports signed by the agent's code.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bowerbird_agent.identity.identity import store_identity
from bowerbird_agent.identity.report_signing import ReportSigner
from bowerbird_server.catalogue import Catalogue, fleet, rollouts
from bowerbird_server.catalogue import identity as rows
from bowerbird_server.fleet.delivery import Delivery
from bowerbird_server.fleet.offers import BlockQueue
from bowerbird_server.fleet.rollout import Settings
from bowerbird_server.identity.authority import Authority, key_pem
from bowerbird_server.identity.claims import Claims
from bowerbird_server.identity.issuer import OwnIssuer
from bowerbird_server.identity.report_check import signs_reports
from bowerbird_server.identity.tokens import new_token, token_hash
from bowerbird_testing.claimant import Claimant
from bowerbird_wire.claim import Answer
from bowerbird_wire.codec import encode
from bowerbird_wire.messages import OF, Report
from bowerbird_wire.topics import AgentReportTopic, ReportTopic

MODEL, OTHER = "a" * 64, "c" * 64
SIGNING, BEFORE = "0.2.0", "0.1.0"


class Silent:
    """A publisher that has a connection and says nothing."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        return True


@dataclass
class Site:
    """A catalogue with a rollout, an authority, and the server's side of the conversation."""

    folder: Path
    cat: Catalogue

    def __post_init__(self) -> None:
        self.authority = Authority.open(self.folder / "identity")
        self.office = self.office_at(datetime.now(tz=UTC))
        self.delivery = Delivery(
            self.cat,
            BlockQueue(self.folder / "repository"),
            Silent(),
            lambda job, device: job,
            verifies=OwnIssuer(self.authority).verifies,
        )
        model = {"digest": MODEL, "created_at": "2026-01-01", "origin": "imported", "state": "champion"}
        self.cat.insert("model", {**model, "onnx_sha256": "b" * 64, "manifest": "{}", "class_names": "[]", "release": 1})

    def office_at(self, now: datetime) -> Claims:
        return Claims(self.cat, OwnIssuer(self.authority), self.authority.root_pem, site="demo", clock=lambda: now)

    def enrol(self, device: str, version: str = SIGNING) -> Board:
        token, now = new_token(), datetime.now(tz=UTC)
        rows.invite(
            self.cat,
            token_hash(token),
            site="demo",
            label=device,
            serial="",
            device=device,
            approved=True,
            now=now,
            expires=now + timedelta(hours=1),
            actor="test",
        )
        claimant = Claimant()
        answer = self.office.claim(replace(claimant.claim(token), agent_version=version)).answer
        assert answer.state == "active"
        board = Board(self, device, self.folder / device, claimant, answer)
        board.keep(claimant, answer)
        return board

    def roll_out(self, *devices: str) -> None:
        rollouts.start_rollout(self.cat, MODEL, 1, list(devices), "test", settings=Settings(wave_shares=(1.0,)))
        rollouts.advance(self.cat)

    def job(self, device: str) -> str:
        return str(self.cat.value("SELECT job FROM execution WHERE device = ?", device))

    def outcome(self, device: str) -> tuple[str, str]:
        return str(self.cat.value("SELECT state FROM execution WHERE device = ?", device)), str(
            fleet.get(self.cat, device)["model_digest"]
        )

    def alarms(self, device: str) -> list[str]:
        return [row["why"]["why"] for row in rows.alarms(self.cat) if row["subject"] == device]

    def hear(self, device: str, report: Report) -> None:
        kind = AgentReportTopic if report.extra.get(OF) else ReportTopic
        self.delivery.received(str(kind("demo", device)), encode(report))


@dataclass
class Board:
    """One device with its identity on the disk."""

    site: Site
    device: str
    folder: Path
    claimant: Claimant
    answer: Answer

    def keep(self, claimant: Claimant, answer: Answer) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        store_identity(self.folder, answer.generation, key_pem(claimant.key), answer.certificate.encode(), answer.ca.encode())
        self.claimant, self.answer = claimant, answer

    def renew(self, at: datetime | None = None, *, is_kept: bool = True) -> None:
        new = Claimant()
        answer = self.site.office_at(at or datetime.now(tz=UTC)).renew(self.claimant.renewal(self.answer, new)).answer
        assert answer.state == "active"
        if is_kept:
            self.keep(new, answer)

    def says(self, state: str, digest: str = MODEL, *, job: str = "", at_ms: int = 1000) -> Report:
        plain = Report(job or self.site.job(self.device), state, digest, model_digest=MODEL, at_ms=at_ms)
        return ReportSigner(self.folder, self.device).signed(plain)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Catalogue(tmp_path / "catalogue.db") as cat:
        yield Site(tmp_path, cat)


def test_a_device_signs_and_is_believed(site: Site) -> None:
    """What the tests below refuse is refused for one thing each."""
    board = site.enrol("cam-01")
    site.roll_out("cam-01")
    site.hear("cam-01", board.says("committed"))
    assert site.outcome("cam-01") == ("succeeded", MODEL)
    assert site.alarms("cam-01") == []


def test_what_a_newer_agent_says_beside_is_signed_with_the_rest(site: Site) -> None:
    """Keys that this server does not know are kept, and the signature holds over them."""
    board = site.enrol("cam-01")
    site.roll_out("cam-01")
    plain = Report(site.job("cam-01"), "committed", MODEL, model_digest=MODEL, extra={"later": {"b": [1, 2.5], "a": b"x"}})
    site.hear("cam-01", ReportSigner(board.folder, "cam-01").signed(plain))
    assert site.outcome("cam-01") == ("succeeded", MODEL)


def test_a_report_without_a_signature_changes_nothing_and_raises_an_alarm(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    board = site.enrol("cam-01")
    site.roll_out("cam-01")
    before = site.outcome("cam-01")
    bare = replace(board.says("committed"), signature=b"", certificate=b"")
    for report in (bare, replace(bare, extra={OF: "agent"}), replace(board.says("committed"), signature=b"")):
        site.hear("cam-01", report)
    assert site.outcome("cam-01") == before
    assert site.alarms("cam-01") == ["a report without a signature came in its name, and changed nothing"]  # three, one alarm
    assert "a report without a signature changes nothing" in caplog.text


def test_a_report_with_a_word_changed_is_not_the_devices(site: Site) -> None:
    board = site.enrol("cam-01")
    site.roll_out("cam-01")
    before, signed = site.outcome("cam-01"), board.says("fetching", OTHER)
    for changed in (
        replace(signed, state="committed", running_digest=MODEL),
        replace(signed, running_digest=MODEL),
        replace(signed, at_ms=2000),
        replace(signed, extra={"later": 1}),
        replace(signed, signature=signed.signature[:-1] + bytes([signed.signature[-1] ^ 1])),
        replace(signed, certificate=b"\x30\x00"),
        replace(signed, certificate=b""),
        replace(signed, certificate=b"\x00" * 100_000),
    ):
        site.hear("cam-01", changed)
    assert site.outcome("cam-01") == before
    assert site.alarms("cam-01") == ["a report whose signature does not hold came in its name, and changed nothing"]


def test_another_devices_key_signs_for_nobody_else(site: Site) -> None:
    """Neither as it is, nor signed anew in the other's name with a certificate that this site's CA did issue."""
    site.enrol("cam-01")
    thief = site.enrol("cam-02")
    site.roll_out("cam-01", "cam-02")
    before = site.outcome("cam-01")
    forged = Report(site.job("cam-01"), "committed", MODEL, model_digest=MODEL)
    site.hear("cam-01", ReportSigner(thief.folder, "cam-02").signed(forged))
    site.hear("cam-01", ReportSigner(thief.folder, "cam-01").signed(forged))
    thief.renew()
    site.hear("cam-01", ReportSigner(thief.folder, "cam-01").signed(forged))
    assert site.outcome("cam-01") == before
    assert site.alarms("cam-01")


def test_a_key_that_nobody_certified_signs_for_nobody(site: Site, tmp_path: Path) -> None:
    """A certificate of an authority of one's own, with the right name and a later generation."""
    board = site.enrol("cam-01")
    site.roll_out("cam-01")
    before, own = site.outcome("cam-01"), Claimant()
    other = Authority.open(tmp_path / "other")
    pem = other.device_certificate("cam-01", own.key.public_key(), generation=9, now=datetime.now(tz=UTC))
    board.keep(own, replace(board.answer, generation=9, certificate=pem.decode(), ca=other.root_pem.decode()))
    site.hear("cam-01", board.says("committed"))
    assert site.outcome("cam-01") == before
    assert site.alarms("cam-01") == [
        "a report signed with a key that is not the device's, or not any more came in its name, and changed nothing"
    ]


def test_a_copy_of_a_report_is_worth_nothing_later(site: Site) -> None:
    """The job has ended, or another is under way: what is sent again says nothing of either, nor of what runs now."""
    board = site.enrol("cam-01")
    site.roll_out("cam-01")
    early, done = board.says("trial", OTHER, at_ms=1000), board.says("committed", MODEL, at_ms=2000)
    site.hear("cam-01", done)
    for copy in (early, done, early):
        site.hear("cam-01", copy)
    assert site.outcome("cam-01") == ("succeeded", MODEL)
    other = {"digest": OTHER, "created_at": "2026-01-02", "origin": "imported", "state": "candidate"}
    site.cat.insert("model", {**other, "onnx_sha256": "d" * 64, "manifest": "{}", "class_names": "[]", "release": 2})
    rollouts.start_rollout(site.cat, OTHER, 2, ["cam-01"], "test", settings=Settings(wave_shares=(1.0,)))
    rollouts.advance(site.cat)
    for copy in (early, done):
        site.hear("cam-01", copy)
    states = site.cat.rows("SELECT execution.state FROM execution JOIN rollout ON rollout.id = rollout WHERE model = ?", OTHER)
    assert [row["state"] for row in states] == ["offered"]


def test_both_keys_sign_while_a_certificate_is_renewed_and_the_old_one_for_two_days(site: Site) -> None:
    board = site.enrol("cam-01")
    site.roll_out("cam-01")
    board.renew(is_kept=False)  # the answer is lost: the board still has its first key
    site.hear("cam-01", board.says("fetching"))
    assert site.outcome("cam-01")[0] == "fetching"
    rows_of = "UPDATE certificate SET issued_at = ? WHERE generation = 2"
    site.cat.execute(rows_of, rows.text_of(datetime.now(tz=UTC) - timedelta(hours=49)))
    site.hear("cam-01", board.says("committed"))
    assert site.outcome("cam-01")[0] == "fetching"
    assert site.alarms("cam-01")


def test_a_certificate_that_a_restored_catalogue_does_not_know_is_proved_by_the_ca(site: Site) -> None:
    board = site.enrol("cam-01")
    site.roll_out("cam-01")
    board.renew()
    site.cat.execute("DELETE FROM certificate WHERE generation = 2")  # as in a backup of before
    site.hear("cam-01", board.says("committed"))
    assert site.outcome("cam-01") == ("succeeded", MODEL)


def test_an_agent_of_before_is_believed_until_it_signs_once(site: Site) -> None:
    """0.1.0 knows no signatures; from the first one on nobody talks the server back to going without."""
    board = site.enrol("cam-01", BEFORE)
    site.roll_out("cam-01")
    signed = board.says("trial")
    site.hear("cam-01", replace(signed, state="fetching", signature=b"", certificate=b""))
    assert site.outcome("cam-01")[0] == "fetching"
    site.hear("cam-01", signed)
    site.hear("cam-01", replace(signed, state="committed", signature=b"", certificate=b""))
    assert site.outcome("cam-01")[0] == "trial"
    assert site.alarms("cam-01") == ["a report without a signature came in its name, and changed nothing"]


def test_a_device_of_a_broker_that_knows_passwords_only_has_nothing_to_sign_with(site: Site, tmp_path: Path) -> None:
    fleet.add_device(site.cat, "cam-03", "demo", "test")
    site.roll_out("cam-03")
    plain = Report(site.job("cam-03"), "committed", MODEL, model_digest=MODEL)
    assert ReportSigner(tmp_path / "no-identity", "cam-03").signed(plain) == plain
    site.hear("cam-03", plain)
    assert site.outcome("cam-03") == ("succeeded", MODEL)


def test_a_key_that_cannot_be_used_sends_the_report_unsigned_and_says_so(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The server refuses it; the update itself goes on."""
    board = site.enrol("cam-01")
    site.roll_out("cam-01")
    (board.folder / "1.pem").chmod(0o644)
    caplog.set_level(logging.WARNING)
    assert board.says("committed").signature == b""
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize(
    ("version", "signs"),
    [("0.1.0", False), ("0.2.0", True), ("0.2", True), ("1.0.0rc1", True), ("0.10.1", True), ("", False), ("later", False)],
)
def test_which_agents_sign(version: str, signs: bool) -> None:
    assert signs_reports(version) is signs
