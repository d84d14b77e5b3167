"""Enrolment over real HTTPS: what a board ends up with, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bowerbird_agent.config import read_config
from bowerbird_agent.errors import AgentError
from bowerbird_agent.identity.claim_client import ClaimFault, post
from bowerbird_agent.identity.enrolment import ApprovalPending, EnrolmentRefused, enrol, read_bundle
from bowerbird_agent.identity.identity import IdentityError, load_identity
from bowerbird_server.catalogue import fleet
from bowerbird_server.catalogue import identity as rows
from bowerbird_server.fleet.provision import broker_of
from bowerbird_server.identity.authority import Authority
from bowerbird_server.identity.invitations import Invitation
from bowerbird_server.identity.listener import server_context
from bowerbird_server.identity.states import Happening
from bowerbird_testing.claim_site import ClaimSite, claim_site
from bowerbird_wire.bundle import Bundle
from bowerbird_wire.claim import CA_PATH, CLAIM_PATH, MAX_BODY_BYTES, ClaimRequest, to_json


@pytest.fixture
def place(tmp_path: Path) -> Iterator[ClaimSite]:
    with claim_site(tmp_path / "server") as running:
        yield running


def enrolled(bundle: Bundle, board: Path, **options: object):  # type: ignore[no-untyped-def]
    board.mkdir(exist_ok=True)
    return enrol(bundle, board / "agent.toml", version="0.1.0", **options)  # type: ignore[arg-type]


def test_a_board_ends_up_with_a_key_of_its_own_and_a_configuration_that_is_complete(place: ClaimSite, tmp_path: Path) -> None:
    done = enrolled(read_bundle(place.bundle(tmp_path)), tmp_path / "board")
    folder = tmp_path / "board" / "state" / "identity"
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir() if not path.name.startswith(".")} == {
        "1.pem": 0o600,
        "ca.pem": 0o600,
        "claim-urls": 0o600,
        "claimed": 0o600,
    }
    assert folder.stat().st_mode & 0o777 == 0o700
    config = read_config(done.config)
    assert config.device.id == done.identity.device == load_identity(folder).device
    assert [camera.name for camera in config.cameras] == ["gate"]
    assert config.update.trusted_root is not None
    assert json.loads(config.update.trusted_root.read_text())["signed"]["_type"] == "root"
    assert done.identity.device in fleet.active_devices(place.site.catalogue)
    done.identity.tls_context()


def test_the_broker_knows_a_device_before_its_answer_leaves_also_when_an_answer_is_given_again(
    place: ClaimSite, tmp_path: Path
) -> None:
    broker = broker_of(place.site)
    assert broker is not None
    bundle = read_bundle(place.bundle(tmp_path, device="cam-01"))
    done = enrolled(bundle, tmp_path / "board")
    assert "user cam-01" in broker.rules_path.read_text()
    # As if the broker had not taken them in, and the board had not heard the answer.
    broker.rules_path.write_text("")
    place.stop()
    place.start()
    done.identity.certificate_file.rename(done.identity.certificate_file.with_name("claim.key"))
    enrolled(bundle, tmp_path / "board")
    assert "user cam-01" in broker.rules_path.read_text()


def test_the_private_key_never_leaves_the_board(place: ClaimSite, tmp_path: Path) -> None:
    done = enrolled(read_bundle(place.bundle(tmp_path)), tmp_path / "board")
    key = done.identity.certificate_file.read_text().split("-----")[2].strip()
    for path in (tmp_path / "server").rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path


def test_an_existing_configuration_is_kept(place: ClaimSite, tmp_path: Path) -> None:
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "agent.toml").write_text("# mine\n")
    assert not enrolled(read_bundle(place.bundle(tmp_path)), tmp_path / "board").wrote_config
    assert (tmp_path / "board" / "agent.toml").read_text() == "# mine\n"


def test_a_used_token_says_what_to_do(place: ClaimSite, tmp_path: Path) -> None:
    bundle = read_bundle(place.bundle(tmp_path))
    enrolled(bundle, tmp_path / "one")
    with pytest.raises(EnrolmentRefused, match="devices invite"):
        enrolled(bundle, tmp_path / "two")


def test_enrolling_again_with_the_stored_key_after_a_lost_answer_gives_the_same(place: ClaimSite, tmp_path: Path) -> None:
    bundle = read_bundle(place.bundle(tmp_path))
    done = enrolled(bundle, tmp_path / "board")
    content = done.identity.certificate_file.read_bytes()
    done.identity.certificate_file.rename(done.identity.certificate_file.with_name("claim.key"))  # as if killed before
    assert enrolled(bundle, tmp_path / "board").identity.certificate_file.read_bytes().split(b"-----END CERT")[0] in content


def test_a_board_that_waits_for_approval_is_told_so_and_gets_in_later(place: ClaimSite, tmp_path: Path) -> None:
    bundle = read_bundle(place.bundle(tmp_path, approved=False))
    with pytest.raises(ApprovalPending, match="devices approve dev-"):
        enrolled(bundle, tmp_path / "board")
    device = fleet.list_devices(place.site.catalogue)[0]["id"]
    told: list[str] = []
    approved: list[float] = []

    def sleep(seconds: float) -> None:
        approved.append(seconds)
        if len(approved) == 2:
            rows.change_state(place.site.catalogue, device, Happening.APPROVED, "test")

    assert enrolled(bundle, tmp_path / "board", wait_s=600, tell=told.append, sleep=sleep).identity.device == device
    assert len(told) == 1


def test_a_server_of_another_ca_gets_nothing(place: ClaimSite, tmp_path: Path) -> None:
    other = Authority.open(tmp_path / "other")
    bundle = replace(read_bundle(place.bundle(tmp_path)), ca=other.root_pem.decode(), pin=other.pin)
    with pytest.raises(ClaimFault, match="stands in between") as fault:
        enrolled(bundle, tmp_path / "board")
    assert fault.value.kind == "ca"


def test_a_bundle_whose_ca_was_swapped_is_noticed_by_its_pin(place: ClaimSite, tmp_path: Path) -> None:
    path = place.bundle(tmp_path)
    other = Authority.open(tmp_path / "other")
    path.write_text(replace(read_bundle(path), ca=other.root_pem.decode()).to_text())
    with pytest.raises(AgentError, match="pin"):
        read_bundle(path)


def test_a_server_of_another_name_is_told_apart_from_another_ca(tmp_path: Path) -> None:
    with claim_site(tmp_path / "server") as place:
        bundle = read_bundle(place.bundle(tmp_path))
        # The listener is bound to 127.0.0.1 only; something of the site's that listens elsewhere has its certificate.
        authority = Authority.open(place.site.folder.identity)
        with (
            tls_server(authority, ["127.0.0.1"], host="127.0.0.2") as port,
            pytest.raises(ClaimFault, match=r"broker\.names") as fault,
        ):
            enrolled(replace(bundle, claim_urls=[f"https://127.0.0.2:{port}"]), tmp_path / "board")
    assert fault.value.kind == "host"


def test_nobody_there_is_said_as_such(place: ClaimSite, tmp_path: Path) -> None:
    bundle = read_bundle(place.bundle(tmp_path))
    place.stop()
    with pytest.raises(ClaimFault, match="cannot be reached") as fault:
        enrolled(bundle, tmp_path / "board")
    assert fault.value.kind == "unreachable"


def test_the_second_address_of_a_bundle_is_tried_when_the_first_is_dead(place: ClaimSite, tmp_path: Path) -> None:
    bundle = read_bundle(place.bundle(tmp_path))
    assert enrolled(replace(bundle, claim_urls=["https://127.0.0.1:1", *bundle.claim_urls]), tmp_path / "board").identity


@pytest.mark.parametrize("days", [-20_000, 3653])
def test_a_board_whose_clock_is_wrong_is_told_the_servers_time_and_that_its_token_is_good(tmp_path: Path, days: int) -> None:
    # A board in 1970 beside a server of today is the same as a board of today beside a server that many years ahead.
    there = datetime.now(tz=UTC) - timedelta(days=days)
    authority = Authority.open(tmp_path / "identity", now=there)
    with server_of_another_time(authority, there) as port:
        bundle = Bundle("demo", "token", [f"https://127.0.0.1:{port}"], authority.root_pem.decode(), authority.pin, "")
        with pytest.raises(ClaimFault, match="set the clock") as fault:
            enrolled(bundle, tmp_path / "board")
    assert fault.value.kind == "clock"
    assert f"{there:%Y-%m-%d}" in str(fault.value)


def test_a_certificate_that_is_out_of_its_time_beside_a_right_clock_is_the_servers_fault(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "identity", now=datetime.now(tz=UTC) - timedelta(days=100))
    with server_of_another_time(authority, datetime.now(tz=UTC), made=datetime.now(tz=UTC) - timedelta(days=60)) as port:
        bundle = Bundle("demo", "token", [f"https://127.0.0.1:{port}"], authority.root_pem.decode(), authority.pin, "")
        with pytest.raises(ClaimFault, match="look at the server") as fault:
            enrolled(bundle, tmp_path / "board")
    assert fault.value.kind == "server"


@contextmanager
def server_of_another_time(authority: Authority, there: datetime, *, made: datetime | None = None) -> Iterator[int]:
    """An HTTPS server whose certificate and Date are of another time; yields its port."""
    pem = authority.folder / "server.pem"
    pem.write_bytes(authority.server_certificate(["127.0.0.1"], now=made or there))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"state":"unusable"}')

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(there, usegmt=True)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def test_an_identity_in_memory_is_refused_and_may_be_asked_for(place: ClaimSite, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("there is no /dev/shm here")
    board = memory / f"bowerbird-test-{os.getpid()}"
    bundle = read_bundle(place.bundle(tmp_path))
    try:
        with pytest.raises(IdentityError, match="--in-memory"):
            enrolled(bundle, board)
        assert enrolled(bundle, board, in_memory_ok=True).identity
    finally:
        subprocess.run(["rm", "-rf", str(board)], check=True)


def test_a_folder_that_others_can_read_is_refused_with_the_command_that_puts_it_right(place: ClaimSite, tmp_path: Path) -> None:
    folder = tmp_path / "board" / "state" / "identity"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    with pytest.raises(IdentityError, match=f"chmod 700 {folder}"):
        enrolled(read_bundle(place.bundle(tmp_path)), tmp_path / "board")


# --- the listener --------------------------------------------------------------------------------------------------------


def raw(place: ClaimSite, method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    with connected(place) as stream:
        stream.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body)
        received = b""
        while chunk := stream.recv(65536):
            received += chunk
    return received


def connected(place: ClaimSite) -> ssl.SSLSocket:
    context = ssl.create_default_context(cadata=Authority.open(place.site.folder.identity).root_pem.decode())
    port = int(place.url.rsplit(":", 1)[1])
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=30), server_hostname="127.0.0.1")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", CLAIM_PATH),
        ("GET", CA_PATH),
        ("POST", f"{CA_PATH}/x"),
        ("POST", "/v1/claim?token=x"),
        ("POST", "/api/devices"),
        ("PUT", CLAIM_PATH),
        ("GET", "/docs"),
    ],
)
def test_it_can_do_nothing_but_claim_and_renew(place: ClaimSite, method: str, path: str) -> None:
    assert raw(place, method, path).startswith(b"HTTP/1.1 404")


def test_bodies_beyond_16_kib_are_refused(place: ClaimSite) -> None:
    assert raw(place, "POST", CLAIM_PATH, b"x" * (MAX_BODY_BYTES + 1)).startswith(b"HTTP/1.1 400")
    assert raw(place, "POST", CLAIM_PATH, b"[" * MAX_BODY_BYTES).startswith(b"HTTP/1.1 400")


def test_bad_late_and_used_tokens_get_answers_of_the_same_bytes(place: ClaimSite, tmp_path: Path) -> None:
    used = place.invite()
    enrolled(used.bundle, tmp_path / "board")
    late = place.invite(now=datetime.now(tz=UTC) - timedelta(hours=73))
    answers = set()
    for token in (used.bundle.token, late.bundle.token, "never-was"):
        answer = raw(place, "POST", CLAIM_PATH, to_json(ClaimRequest(token, "x")))
        answers.add(
            json.dumps({key: value for key, value in json.loads(answer.split(b"\r\n\r\n")[1]).items() if key != "server_time"})
        )
        assert answer.startswith(b"HTTP/1.1 403")
    assert len(answers) == 1


def test_guessing_is_slowed_down(place: ClaimSite) -> None:
    ca = Authority.open(place.site.folder.identity).root_pem.decode()
    states = [post(place.url, CLAIM_PATH, to_json(ClaimRequest(f"guess-{i}", "x")), ca).answer.state for i in range(25)]
    assert states[:20] == ["refused"] * 20
    assert set(states[20:]) == {"too-many"}


def test_tokens_reach_no_log(place: ClaimSite, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    invitation: Invitation = place.invite()
    enrolled(invitation.bundle, tmp_path / "board")
    assert invitation.bundle.token not in caplog.text


@contextmanager
def tls_server(authority: Authority, names: list[str], host: str) -> Iterator[int]:
    """A TLS server that shakes hands and hangs up; yields its port."""
    listener = socket.create_server((host, 0))
    context = server_context(authority, names)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_connections_that_say_nothing_or_only_drip_are_ended_and_others_are_served_meanwhile(
    place: ClaimSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bowerbird_server.identity import listener

    monkeypatch.setattr(listener, "REQUEST_S", 0.5)
    idle, dripping = connected(place), connected(place)
    half_open = socket.create_connection(("127.0.0.1", int(place.url.rsplit(":", 1)[1])))
    dripping.sendall(b"POST /v1/claim HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    assert enrolled(place.invite().bundle, tmp_path / "board").identity
    assert idle.recv(1) == b""
    answer = dripping.recv(4096)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    half_open.settimeout(20)
    assert half_open.recv(1) == b""
