"""The web process over real sockets: TLS, forwarded headers, peers that are slow or many; and a whole site searched for secrets."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from bowerbird_server.access.first_run import first_token
from bowerbird_server.access.roles import Role, Sites
from bowerbird_server.catalogue import Catalogue, accounts, audit
from bowerbird_server.config import ServerConfig, WebConfig
from bowerbird_server.errors import ConfigError, EnvironmentFault
from bowerbird_server.identity.authority import Authority
from bowerbird_server.layout import DataFolder
from bowerbird_server.web import server as web_server
from bowerbird_server.web.certificate import Certificate, certificate_of, check_names
from bowerbird_server.web.endpoint import WebEndpoint

NOW = datetime.now(UTC)
PASSWORD = "four random words stand"
SERVE = (sys.executable, "-m", "bowerbird_server.cli")


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data").make()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


@contextmanager
def serving(folder: DataFolder, web: WebConfig) -> Iterator[int]:
    """The web server in a thread; its port."""
    endpoint = WebEndpoint("127.0.0.1", free_port())
    server = web_server.make_server(folder, endpoint, web, certificate_of(folder, web, now=NOW))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, "uvicorn did not start")
    try:
        yield endpoint.port
    finally:
        server.should_exit = True
        thread.join(20)


# ---- TLS


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_with_the_sites_authority_the_pages_are_served_to_whoever_trusts_its_root(folder: DataFolder) -> None:
    web = WebConfig(tls="site", names=["bird.example"])
    with serving(folder, web) as port:
        trusting = ssl.create_default_context(cafile=str(folder.identity / "root.pem"))
        assert httpx.get(f"https://127.0.0.1:{port}/api/v1/health", verify=trusting).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"https://127.0.0.1:{port}/api/v1/health")
        old = ssl.create_default_context(cafile=str(folder.identity / "root.pem"))
        old.set_ciphers("ALL:@SECLEVEL=0")  # the client would take it
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://127.0.0.1:{port}/api/v1/health", verify=old)
    assert (folder.identity / "web.pem").stat().st_mode & 0o077 == 0


def test_the_sites_certificate_is_made_anew_when_a_third_of_its_life_is_left_or_names_change(folder: DataFolder) -> None:
    web = WebConfig(tls="site", names=["a.example"])

    def made(web: WebConfig, days: float) -> bytes:
        found = certificate_of(folder, web, now=NOW + timedelta(days=days))
        assert found is not None
        return found.chain.read_bytes()

    first = made(web, 0)
    assert made(web, 20) == first
    renewed = made(web, 35)
    assert renewed != first
    assert made(WebConfig(tls="site", names=["b.example"]), 35) != renewed


def test_a_key_that_others_can_read_or_that_does_not_belong_is_refused(folder: DataFolder, tmp_path: Path) -> None:
    authority = Authority.open(folder.identity)
    one, other = (authority.server_certificate(["localhost"], now=NOW) for _ in range(2))
    pem, wrong = tmp_path / "web.pem", tmp_path / "other.pem"
    for path, content in ((pem, one), (wrong, other)):
        path.write_bytes(content)
        path.chmod(0o600)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(one[one.index(b"-----BEGIN CERTIFICATE") :])
    web = WebConfig(tls="files", certificate_file=str(chain), key_file=str(pem))
    assert certificate_of(folder, web, now=NOW) == Certificate(chain, pem)
    with pytest.raises(EnvironmentFault, match="belong together"):
        certificate_of(folder, web.model_copy(update={"key_file": str(wrong)}), now=NOW)
    pem.chmod(0o644)
    with pytest.raises(EnvironmentFault, match="chmod 600"):
        certificate_of(folder, web, now=NOW)


def test_listening_everywhere_with_the_sites_certificate_needs_names() -> None:
    everywhere = "::"
    with pytest.raises(ConfigError, match=r"web\.names"):
        check_names(WebConfig(tls="site", host=everywhere))
    check_names(WebConfig(tls="site", host=everywhere, names=["x.example"]))


# ---- proxies, slow peers, crowds


@pytest.mark.parametrize(("proxies", "believed"), [([], False), (["192.0.2.9"], False), (["127.0.0.1"], True)])
def test_forwarded_headers_are_believed_from_configured_proxies_only(
    folder: DataFolder, proxies: list[str], believed: bool
) -> None:
    """Otherwise anybody could write any address into the audit log, and get a new number of tries with each."""
    forged = {"X-Forwarded-For": "203.0.113.5", "X-Forwarded-Proto": "https"}
    with Catalogue(folder.catalogue) as cat:
        accounts.add_user(cat, "ada", PASSWORD, Role.VIEWER, Sites(), "test")
        with serving(folder, WebConfig(proxies=proxies)) as port:
            answer = httpx.post(f"http://127.0.0.1:{port}/login", data={"name": "ada", "password": PASSWORD}, headers=forged)
        assert answer.status_code == 303
        assert ("secure" in answer.headers["set-cookie"].lower()) == believed
        (event, *_) = audit.events(cat, actor="ada")
        assert event["origin"] == f"{'203.0.113.5' if believed else '127.0.0.1'} user:ada"


def test_a_peer_that_never_finishes_its_request_is_cut_off_and_others_are_served(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says nothing, one that drips headers, one that drips a body."""
    monkeypatch.setattr(web_server, "HEADER_WAIT_S", 0.5)
    monkeypatch.setattr("bowerbird_server.web.auth._BODY_WAIT_S", 0.5)
    with serving(folder, WebConfig()) as port:
        half = b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 50\r\n"
        peers = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3)]
        peers[1].sendall(half)
        peers[2].sendall(half + b"\r\nname=")
        assert httpx.get(f"http://127.0.0.1:{port}/api/v1/health").status_code == 200
        for peer in peers:
            peer.settimeout(10)
            try:
                while peer.recv(4096):
                    pass
            except ConnectionResetError:
                pass
            peer.close()


def test_one_address_does_not_hold_all_connections(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "MOST_OF_ONE_ADDRESS", 5)
    with serving(folder, WebConfig()) as port:
        peers = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(5)]
        assert not web_server.BoundedProtocol.proxies
        wait_until(lambda: sum(web_server.BoundedProtocol._held.values()) == 5, "five connections")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/api/v1/health")
        for peer in peers:
            peer.close()
        wait_until(lambda: sum(web_server.BoundedProtocol._held.values()) == 0, "all are let go")
        assert httpx.get(f"http://127.0.0.1:{port}/api/v1/health").status_code == 200


def test_headers_without_end_are_refused(folder: DataFolder) -> None:
    with serving(folder, WebConfig()) as port, pytest.raises((httpx.HTTPStatusError, httpx.TransportError)):
        httpx.get(f"http://127.0.0.1:{port}/api/v1/health", headers={"X-Long": "x" * 200_000}).raise_for_status()


# ---- the first run


def test_the_first_token_is_made_when_nobody_could_come_in_and_not_again(folder: DataFolder) -> None:
    with Catalogue(folder.catalogue) as cat:
        token = first_token(cat, folder)
        assert token is not None
        assert first_token(cat, folder) is None
        for row in accounts.list_tokens(cat):
            accounts.revoke_token(cat, row["id"], "test")
        assert first_token(cat, folder) not in {None, token}


def test_the_token_of_an_older_release_goes_on_and_leaves_its_file(folder: DataFolder) -> None:
    old = "an-older-releases-token-0123456789"
    path = folder.root / "web.json"
    path.write_text(json.dumps({"host": "127.0.0.1", "port": 1, "token": old}))
    assert WebEndpoint.load(folder).port == 1
    with Catalogue(folder.catalogue) as cat:
        assert first_token(cat, folder) is None
        WebEndpoint.choose(folder, WebConfig())
        assert "token" not in path.read_text()
        principal = accounts.principal_of_token(cat, old)
        assert principal is not None
        assert principal.role is Role.ADMINISTRATOR


# ---- a whole site, searched for secrets


@pytest.mark.broker
def test_no_secret_is_in_a_log_a_command_line_or_a_file_that_others_can_read(tmp_path: Path) -> None:
    """The site runs with TLS, people and programs come in, rightly and wrongly; then every file and process is looked through."""
    data = tmp_path / "site"
    data.mkdir()
    (data / "bowerbird.toml").write_text('[web]\ntls = "site"\n')
    password_file = tmp_path / "password"
    password_file.write_text(PASSWORD + "\n")
    password_file.chmod(0o600)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    said = tmp_path / "said"
    with said.open("wb") as out:
        process = subprocess.Popen(
            [*SERVE, "serve", "--data", str(data)], stdout=out, stderr=out, env=environment, umask=0o022, start_new_session=True
        )
    try:
        wait_until(lambda: (data / "serve.json").exists() and "web" in _children(data), "the site did not start", 60)
        endpoint = WebEndpoint.load(DataFolder(data))
        assert endpoint.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(data / "identity" / "root.pem"))
        with httpx.Client(base_url=endpoint.url, verify=trusting, trust_env=False) as web:
            wait_until(lambda: _answers(web), "the pages did not answer", 60)
            first = (data / "first-token").read_text().strip()
            commands = [
                ["users", "add", "ada", "--role", "administrator", "--password-file", str(password_file)],
                ["tokens", "add", "prometheus", "--role", "metrics", "--json"],
                ["devices", "add", "cam-01"],
            ]
            answers = [
                subprocess.run(
                    [*SERVE, *command, "--data", str(data)], capture_output=True, text=True, check=True, env=environment
                )
                for command in commands
            ]
            metrics = json.loads(answers[1].stdout)["token"]
            assert web.get("/metrics", headers={"Authorization": f"Bearer {metrics}"}).status_code == 200
            wrong = "wrong-words-that-are-secret-too"
            assert web.post("/login", data={"name": "ada", "password": wrong}).status_code == 401
            assert web.get(f"/api/v1/summary?token={wrong}", headers={"Authorization": f"Bearer {wrong}"}).status_code == 401
            assert web.post("/login", data={"token": first, "author": "Grace"}).status_code == 303
            wait_until(lambda: not (data / "first-token").exists(), "the first token's file stays")
            web.cookies.clear()
            assert web.post("/login", data={"name": "ada", "password": PASSWORD}).status_code == 303
            cookie = web.cookies["bowerbird_session"]
            assert web.get("/").status_code == 200
        device = re.search(r'password = "([^"]+)"', (data / "devices" / "cam-01" / "agent.toml").read_text())
        secrets = [PASSWORD, first, metrics, wrong, cookie, *([device.group(1)] if device else [])]
        lines = [
            path.read_bytes()
            for pid in _family(process.pid)
            for path in (Path(f"/proc/{pid}/cmdline"), Path(f"/proc/{pid}/environ"))
        ]
        assert len(lines) >= 10
        logs = [said.read_bytes(), *(path.read_bytes() for path in (data / "logs").iterdir())]
        for secret in secrets:
            assert not [line for line in lines if secret.encode() in line], "in a command line or an environment"
            assert not [text for text in logs if secret.encode() in text], "in a log"
        open_to_all = [path for path in data.rglob("*") if path.is_file() and _readable_by_others(path, data)]
        telling = [
            path.relative_to(data)
            for path in open_to_all
            if any(secret.encode() in (content := path.read_bytes()) for secret in secrets) or b"PRIVATE KEY" in content
        ]
        assert not telling
        assert data / "catalogue.db" not in open_to_all
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.parametrize("name", ["keys/timestamp.pem", "identity/root.key"])
def test_a_site_whose_key_others_can_read_does_not_start(tmp_path: Path, name: str) -> None:
    folder = DataFolder(tmp_path / "site").make()
    Catalogue(folder.catalogue).close()
    key = folder.root / name
    key.write_text("-----BEGIN PRIVATE KEY-----\n")
    key.chmod(0o644)
    done = subprocess.run(
        [*SERVE, "serve", "--data", str(folder.root)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 5
    assert str(key) in done.stderr
    assert "chmod 600" in done.stderr


def _answers(web: httpx.Client) -> bool:
    try:
        return web.get("/api/v1/health").status_code == 200
    except httpx.TransportError:
        return False


def _children(data: Path) -> dict[str, int]:
    try:
        return dict(json.loads((data / "serve.json").read_text())["children"])
    except (OSError, ValueError):
        return {}


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = [pid]
    for one in family:
        family += [child for child, parent in parents.items() if parent == one]
    return family


def _readable_by_others(path: Path, root: Path) -> bool:
    """Whether another user could reach and read a file: its own mode, and that of every folder up to the data folder."""
    if not path.stat().st_mode & 0o004:
        return False
    return all(place.stat().st_mode & 0o001 for place in path.parents if root in (place, *place.parents))


def test_the_configuration_of_the_web_is_checked_whole() -> None:
    with pytest.raises(ValueError, match="certificate_file"):
        ServerConfig.model_validate({"web": {"tls": "files"}})
