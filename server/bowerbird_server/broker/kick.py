"""Ending a client's session at our own broker from outside, and knowing that it has ended.

In: the unix socket that the broker serves for this alone, name and password of the one user of it. Out: sessions that are gone
with everything that waited for them, and the certainty that the rules on disk are those in force. The user may take over client
ids and publish to one topic that nobody reads; no other right comes with it.
"""

from __future__ import annotations

import json
import os
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bowerbird_server.broker.address import write_private
from bowerbird_server.errors import EnvironmentFault

SOCKET_NAME = "kick.sock"
_LOGIN_NAME = "kick.json"
_WAIT_S = 3.0
_ATTEMPTS = 5


@dataclass(frozen=True)
class KickLogin:
    """Who may end sessions."""

    name: str
    password: str

    def save(self, folder: Path) -> None:
        """Keep it in the broker's folder, mode 0600."""
        write_private(folder / _LOGIN_NAME, json.dumps({"name": self.name, "password": self.password}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> KickLogin | None:
        """What was kept, None when there is nothing usable."""
        try:
            plain = json.loads((folder / _LOGIN_NAME).read_text())
            return cls(str(plain["name"]), str(plain["password"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


class Kicker:
    """Talks to one running broker.

    Args:
        folder: of the broker; its socket and the login are in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def await_rules(self, probe_topic: str, *, timeout_s: float = 5.0) -> None:
        """Return once the broker goes by the rules that name this topic.

        Raises:
            EnvironmentFault: it does not within the time.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._connection("bowerbird-rules", clean=True) as (client, _):
            answers: queue.Queue[bool] = queue.Queue()
            client.on_publish = lambda _c, _d, _mid, reason, _p: answers.put(not reason.is_failure)
            while time.monotonic() < deadline_s:
                client.publish(probe_topic, b"", 1)
                try:
                    if answers.get(timeout=max(0.01, deadline_s - time.monotonic())):
                        return
                except queue.Empty:
                    break
                time.sleep(0.05)
        raise EnvironmentFault(
            f"the broker in {self._folder} does not go by its new rules after {timeout_s:g} s; see its log, and stop `bowerbird serve` "
            "if a device must be kept out at once"
        )

    def end(self, client_id: str) -> None:
        """End a client's session, with what waits for it; afterwards the broker has none under this id that holds anything.

        Raises:
            EnvironmentFault: the broker does not answer, or a session keeps coming back with messages.
        """
        for _ in range(_ATTEMPTS):
            with self._connection(client_id, clean=True):
                pass  # the broker closes the old connection and forgets its session before it answers
            with self._connection(client_id, clean=False) as (_, present):
                if not present:
                    return
        raise EnvironmentFault(
            f"the session of {client_id} cannot be ended: it comes back faster than it is closed; see the broker's log"
        )

    @contextmanager
    def _connection(self, client_id: str, *, clean: bool) -> Iterator[tuple[mqtt.Client, bool]]:
        """A connection in place of whoever has this client id, and whether a session was there."""
        login = KickLogin.load(self._folder)
        if login is None:
            raise EnvironmentFault(f"{self._folder / _LOGIN_NAME} is missing: start `bowerbird serve` again")
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=mqtt.MQTTv5, transport="unix", reconnect_on_failure=False
        )
        client.username_pw_set(login.name, login.password)
        answers: queue.Queue[tuple[ReasonCode, bool]] = queue.Queue()
        client.on_connect = lambda _c, _d, flags, reason, _p: answers.put((reason, flags.session_present))
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho has no annotation here
        properties.SessionExpiryInterval = 0
        handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # By the folder's number, since a socket's path must be shorter than 108 characters.
            client.connect(f"/proc/self/fd/{handle}/{SOCKET_NAME}", 1883, 30, clean_start=clean, properties=properties)
            client.loop_start()
            reason, present = answers.get(timeout=_WAIT_S)
        except (OSError, queue.Empty) as error:
            client.loop_stop()
            raise EnvironmentFault(
                f"the broker in {self._folder} does not answer on {SOCKET_NAME} ({str(error) or 'timeout'}); does the server run?"
            ) from error
        finally:
            os.close(handle)
        try:
            if reason.is_failure:
                raise EnvironmentFault(
                    f"the broker refuses its own login on {SOCKET_NAME}: {reason}; start `bowerbird serve` again"
                )
            yield client, present
        finally:
            client.disconnect()
            client.loop_stop()
