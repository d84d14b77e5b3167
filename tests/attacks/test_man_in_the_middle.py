"""Somebody between board and server who has a good certificate of an authority that the whole machine trusts."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bowerbird_agent.identity.claim_client import ClaimFault
from bowerbird_agent.identity.enrolment import EnrolmentRefused, bundle_of_text, enrol, read_bundle
from bowerbird_server.identity.authority import Authority
from bowerbird_testing.claim_site import claim_site
from bowerbird_testing.free_client import FreeClient
from bowerbird_testing.tls_broker import TlsBroker
from bowerbird_wire import tls_faults
from bowerbird_wire.bundle import Bundle
from bowerbird_wire.claim import CA_PATH, claim_text

# In a process of its own, as any program of the machine would ask.
_FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], b'{}').status)"


@contextmanager
def in_between(authority: Authority, *, says: str = "") -> Iterator[tuple[int, list[bytes]]]:
    """A listener with a certificate for 127.0.0.1 by `authority`, and what it was sent; it answers as a claim listener does.

    Args:
        says: the CA that it calls its own.
    """
    pem = authority.folder / "between.pem"
    pem.write_bytes(authority.server_certificate(["127.0.0.1"], now=datetime.now(tz=UTC)))
    heard: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.requestline.encode() + self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"state": "refused", "ca": says}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], heard
    finally:
        server.shutdown()
        server.server_close()


def run(trusted: Path, code: str, *arguments: object) -> str:
    environment = {**os.environ, "SSL_CERT_FILE": str(trusted)}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    return done.stdout.strip()


def test_a_certificate_of_an_authority_that_the_machine_trusts_gets_no_token(tmp_path: Path) -> None:
    """Not a byte is sent; a client that asks the machine whom it trusts would have been fooled."""
    own, public = Authority.open(tmp_path / "own"), Authority.open(tmp_path / "public")
    trusted = tmp_path / "public.pem"
    trusted.write_bytes(public.root_pem)
    with in_between(public) as (port, heard):
        bundle = Bundle("demo", "secret-token", [f"https://127.0.0.1:{port}"], own.root_pem.decode(), own.pin, "2099-01-01")
        path = tmp_path / "bundle.json"
        path.write_text(bundle.to_text())
        assert run(trusted, _FETCH, f"https://127.0.0.1:{port}/") == "200"
        assert len(heard) == 1
        heard.clear()
        assert enrol_with(path, tmp_path / "board", trusted) == "ca"
        assert heard == []


def enrol_with(bundle: Path, board: Path, trusted: Path) -> str:
    """The kind of fault that enrolment ends with on a machine that trusts one more authority."""
    board.mkdir()
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = str(trusted)  # read whenever a context looks for the machine's authorities
    try:
        enrol(read_bundle(bundle), board / "agent.toml", version="0.1.0")
    except ClaimFault as fault:
        return fault.kind
    except Exception as error:
        return type(error).__name__
    finally:
        os.environ.pop("SSL_CERT_FILE") if before is None else os.environ.update(SSL_CERT_FILE=before)
    return "enrolled"


def test_what_a_board_sends_has_its_token_in_the_body_only(tmp_path: Path) -> None:
    """An address ends up in logs of proxies and in `ps`; the body does not."""
    own = Authority.open(tmp_path / "own")
    with in_between(own) as (port, heard):
        bundle = Bundle("demo", "secret-token", [f"https://127.0.0.1:{port}"], own.root_pem.decode(), own.pin, "2099-01-01")
        path = tmp_path / "bundle.json"
        path.write_text(bundle.to_text())
        assert enrol_with(path, tmp_path / "board", tmp_path / "none") == "EnrolmentRefused"
    (request,) = heard
    line, body = request[: request.index(b"{")], request[request.index(b"{") :]
    assert b"secret-token" in body
    assert b"secret-token" not in line


def test_a_board_that_knows_the_pin_only_tells_nobody_its_token_whose_ca_is_another(tmp_path: Path) -> None:
    """Whether the one in between shows its own CA, or the site's own, which is public but whose key it has not."""
    own, other = Authority.open(tmp_path / "own"), Authority.open(tmp_path / "other")
    for says in (other, own):
        with in_between(other, says=says.root_pem.decode()) as (port, heard):
            text = claim_text(f"https://127.0.0.1:{port}", "secret-token", own.pin)
            with pytest.raises(ClaimFault) as fault:
                enrol(bundle_of_text(text), tmp_path / "agent.toml", version="0.2.0")
            assert fault.value.kind == "ca"
            assert heard == [f"POST {CA_PATH} HTTP/1.1".encode()]
    with in_between(own, says=own.root_pem.decode()) as (port, heard):  # the counterpart: the site itself is told
        text = claim_text(f"https://127.0.0.1:{port}", "secret-token", own.pin)
        with pytest.raises(EnrolmentRefused):
            enrol(bundle_of_text(text), tmp_path / "agent.toml", version="0.2.0")
        assert b"secret-token" in heard[-1]


@pytest.mark.broker
def test_a_device_speaks_to_no_broker_of_an_authority_that_the_machine_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same one step later, at the broker."""
    with TlsBroker(tmp_path, {"cam-01": "demo"}) as site:
        other = Authority.open(tmp_path / "other")
        own = tmp_path / "own.pem"
        own.write_bytes(other.root_pem)
        monkeypatch.setenv("SSL_CERT_FILE", site.server.ca_file)  # the machine trusts this broker, the device does not
        with FreeClient(replace(site.address("cam-01"), ca_file=str(own)), "cam-01") as device:
            assert (device.heard.accepted, device.heard.tls) == (False, tls_faults.WRONG_CA)


def test_the_site_itself_is_believed_all_the_while(tmp_path: Path) -> None:
    """The counterpart of the rows above, without which they could not fail."""
    other = Authority.open(tmp_path / "public")
    trusted = tmp_path / "public.pem"
    trusted.write_bytes(other.root_pem)
    with claim_site(tmp_path / "server") as place:
        assert enrol_with(place.bundle(tmp_path), tmp_path / "board", trusted) == "enrolled"
