"""What stands between this device and its broker, step by step: clock, chain, pin, name, port, TLS, login, echo.

In: the configuration. Out: a `Finding` per step, ending at the first that fails, since what lies behind it cannot be looked at. It logs
in under the device's own name, which the certificate fixes, so it does not while the agent runs: that would end the agent's connection.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from bowerbird_agent.doctor.findings import FAIL, OK, WARN, Finding
from bowerbird_agent.errors import AgentError
from bowerbird_agent.identity.claim_client import pin_of
from bowerbird_agent.identity.identity import FOLDER, leaf_of, load_identity
from bowerbird_agent.identity.renewal import due_at
from bowerbird_agent.link.broker_tls import date_fault, make_context
from bowerbird_agent.link.config import read_password
from bowerbird_wire.tls_faults import explain_tls
from bowerbird_wire.topics import EchoTopic

if TYPE_CHECKING:
    from bowerbird_agent.config import AgentConfig

TIMEOUT_S = 8.0
_UTC = timezone.utc


def examine_link(config: AgentConfig) -> list[Finding]:
    """The findings, as far as they reach."""
    found: list[Finding] = []
    for finding in _steps(config):
        found.append(finding)
        if finding.state == FAIL:
            break
    return found


def _steps(config: AgentConfig) -> Iterator[Finding]:
    broker = config.broker
    if broker.tls and broker.certificate_file is None and broker.password_file is None:
        yield from _identity(config)
    where = f"{broker.host}:{broker.port}"
    try:
        addresses = socket.getaddrinfo(broker.host, broker.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        yield Finding(
            "broker name", FAIL, f"{broker.host} is not known here ({error.strerror})", "check DNS, or use an address"
        )
        return
    yield Finding("broker name", OK, f"{broker.host} is {addresses[0][4][0]}")
    try:
        socket.create_connection((broker.host, broker.port), timeout=TIMEOUT_S).close()
    except OSError as error:
        what = f"{where}: {error.strerror or error}"
        yield Finding("broker port", FAIL, what, "check broker.host and port, the firewall, and that the server runs")
        return
    yield Finding("broker port", OK, f"{where} accepts connections")
    if broker.tls:
        yield _tls(config, where)
    if _agent_runs(config.device.state_dir):
        yield Finding("broker login", OK, "the agent runs and is not disturbed; its log says whether it is connected")
        return
    yield from _login(config, where)


def _identity(config: AgentConfig) -> Iterator[Finding]:
    folder = config.device.state_dir / FOLDER
    now = datetime.now(tz=_UTC)
    try:
        identity = load_identity(folder, now=now)
    except AgentError as error:
        yield Finding("identity", FAIL, str(error))
        return
    fault = date_fault(config.broker, config.device.state_dir, now)
    if fault:
        yield Finding("identity", FAIL, fault, "set the clock; an expired certificate renews itself once the server is reached")
        return
    if identity.device != config.device.id:
        advice = f"set device.id to {identity.device}"
        yield Finding("identity", FAIL, f"the certificate is {identity.device}'s, device.id is {config.device.id}", advice)
        return
    good = f"{identity.device}, generation {identity.generation}, good until {identity.not_after:%Y-%m-%d}"
    if now > due_at(identity) + (identity.not_after - due_at(identity)) / 2:
        yield Finding("identity", WARN, good, "its renewal is overdue; the agent's log says why")
    else:
        yield Finding("identity", OK, f"{good}, renews on {due_at(identity):%Y-%m-%d}")
    yield _chain(identity.certificate_file, identity.ca_file)


def _chain(certificate_file: Path, ca_file: Path) -> Finding:
    from cryptography import x509

    try:
        content, ca = certificate_file.read_bytes(), ca_file.read_bytes()
        leaf, *issuing = x509.load_pem_x509_certificates(content[content.index(b"-----BEGIN CERTIFICATE") :])
        above = [*issuing, leaf_of(ca)]
        for lower, upper in zip([leaf, *issuing], above, strict=True):
            lower.verify_directly_issued_by(upper)
    except (OSError, ValueError) as error:
        return Finding("chain", FAIL, f"{ca_file} cannot be used: {error}", "enrol the device again")
    except Exception as error:  # InvalidSignature and TypeError: the files do not belong together
        what = f"the certificate does not lead to {ca_file} ({type(error).__name__})"
        return Finding("chain", FAIL, what, "one of the two files was changed; enrol the device again")
    return Finding("chain", OK, f"leads to the site's CA, pin {pin_of(ca.decode())[:16]}…")


def _tls(config: AgentConfig, where: str) -> Finding:
    """The handshake, and with TLS 1.3 the first word after it, where a refusal comes."""
    try:
        context = make_context(config.broker, config.device.state_dir)
        with (
            socket.create_connection((config.broker.host, config.broker.port), timeout=TIMEOUT_S) as raw,
            context.wrap_socket(raw, server_hostname=config.broker.host) as stream,
        ):
            stream.settimeout(1.0)
            version = stream.version()
            with contextlib.suppress(TimeoutError):
                stream.recv(1)  # the broker waits for our CONNECT; it speaks first only to refuse
    except ssl.SSLError as error:
        return Finding("broker TLS", FAIL, f"{where}: {explain_tls(error)}")
    except AgentError as error:
        return Finding("broker TLS", FAIL, str(error))
    except OSError as error:
        return Finding("broker TLS", FAIL, f"{where}: {error.strerror or error}", "check that broker.port is the TLS port")
    return Finding("broker TLS", OK, f"{version}, certificate shown and not refused")


def _login(config: AgentConfig, where: str) -> Iterator[Finding]:
    broker, device = config.broker, config.device
    answered, subscribed, echoed = threading.Event(), threading.Event(), threading.Event()
    refusals: list[str] = []
    echo = str(EchoTopic(device.site, device.id))
    word = secrets.token_bytes(16)

    def on_connect(_c: object, _u: object, _f: object, reason: ReasonCode, _p: object) -> None:
        if reason.is_failure:
            refusals.append(str(reason))
        answered.set()

    def on_message(_c: object, _u: object, message: paho.MQTTMessage) -> None:
        if message.payload == word:
            echoed.set()

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=device.id, protocol=paho.MQTTv5)
    client.on_connect, client.on_message = on_connect, on_message
    client.on_subscribe = lambda *_: subscribed.set()
    client.username_pw_set(broker.username or device.id, read_password(broker))
    if broker.tls:
        client.tls_set_context(make_context(broker, device.state_dir))
    client.connect(broker.host, broker.port, 10)
    client.loop_start()
    try:
        if not answered.wait(TIMEOUT_S):
            yield Finding("broker login", FAIL, f"{where} does not answer as an MQTT broker", "check the port; look at its log")
            return
        if refusals:
            advice = "check that the server knows the device: `bowerbird devices list` there"
            yield Finding("broker login", FAIL, f"{where} refuses: {refusals[0]}", advice)
            return
        yield Finding("broker login", OK, f"{where} lets {broker.username or device.id} in")
        client.subscribe(echo, qos=1)
        subscribed.wait(TIMEOUT_S)
        client.publish(echo, word, qos=1)
        if not echoed.wait(TIMEOUT_S):
            what = f"{where} passes nothing of {device.id} on"
            yield Finding(
                "broker echo",
                FAIL,
                what,
                "suspended, retired or not approved, or rules of a broker of your own without the echo topic; ask who runs the server",
            )
            return
        yield Finding("broker echo", OK, "a message to itself came back")
    finally:
        client.disconnect()
        client.loop_stop()


def _agent_runs(state_dir: Path) -> bool:
    """Whether another process holds the spool."""
    try:
        with (state_dir / "spool" / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
