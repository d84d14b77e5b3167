"""What is wished of devices, published as far as it is not yet: Desired, jobs, fetches, and how much may be on the way.

In: the catalogue's wishes, and which devices are there. Out: retained Desired, Job and Credit messages, receipts that ask for more of a
frame; everything again on every connect, since the broker keeps nothing. It reads nothing that devices say (`delivery.py`) and decides
no rollout, change or campaign (`rollout.py`, `catalogue/config_changes.py`, `campaign_shares.py`): it gives them their turn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Protocol

from bowerbird_server.catalogue import (
    calibrations,
    campaigns,
    config_changes,
    device_config,
    drift_rows,
    fetches,
    fleet,
    fleet_sketches,
    rollouts,
)
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.errors import ServerError
from bowerbird_wire.codec import encode
from bowerbird_wire.messages import REFERENCES, Credit, Desired, Job, Receipt
from bowerbird_wire.topics import AgentJobTopic, CreditTopic, DesiredTopic, JobTopic, ReceiptTopic

log = logging.getLogger(__name__)

DESIRED_AT_ONCE = 100
# How often devices that found nothing for a campaign are given some of its quota again.
CAMPAIGN_TURN_EVERY_S = 600.0
# A wish that was said and not answered is said again after so long, and at once to a device that comes back.
FETCH_AGAIN_S = 300.0
_FETCHES_A_MESSAGE = 50


class Publisher(Protocol):
    """What delivery needs to send."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand over a message; False without a connection."""


class Wishes:
    """Remembers what is published on this connection, and publishes what differs.

    Args:
        cat: the catalogue, of the calling thread.
        publisher: where messages go.
        sign: signs a job for the device named second.
        present: the devices whose status came on this connection; read only.
    """

    def __init__(self, cat: Catalogue, publisher: Publisher, sign: Callable[[Job, str], Job], present: Collection[str]) -> None:
        self._cat, self._publisher, self._sign, self._present = cat, publisher, sign, present
        self._desired: dict[str, Desired] = {}  # as last published on this connection
        self._jobs: dict[tuple[str, bool], Job] = {}  # by device, and whether it is of the agent
        self._credits: dict[str, int] = {}  # by site
        self._fetches_said: dict[bytes, float] = {}  # request -> when it was said last, monotonic seconds
        self._turn_at_s = time.monotonic() + CAMPAIGN_TURN_EVERY_S
        self._complained = False

    def forget_published(self) -> None:
        """The broker may have lost all that it retained."""
        self._desired.clear()
        self._jobs.clear()
        self._credits.clear()
        self._fetches_said.clear()

    def publish(self) -> None:
        """Advance rollouts, changes and campaigns, and publish each Desired and Job that differs from what is published already.

        At most `DESIRED_AT_ONCE` wishes go out at a time, so that a change for a large fleet is no burst.
        """
        for rollout in rollouts.advance(self._cat):
            log.info("rollout %s moved on", rollout)
        for change in config_changes.advance(self._cat):
            log.info("configuration change %s moved on", change)
        campaigns.advance(self._cat, turn=self._is_turn())
        sites = fleet.active_devices(self._cat)
        published = 0
        for device, desired in wanted_of(self._cat, sites).items():
            if self._desired.get(device) == desired:
                continue
            if published >= DESIRED_AT_ONCE:
                break
            if self._publisher.publish(str(DesiredTopic(sites[device], device)), encode(desired), retain=True):
                self._desired[device] = desired
                published += 1
        for wanted in rollouts.jobs(self._cat):
            key = (wanted.device, wanted.is_agent)
            if self._jobs.get(key) == wanted.job:
                continue
            try:
                signed = self._sign(wanted.job, wanted.device)
            except ServerError as error:
                log.log(logging.DEBUG if self._complained else logging.ERROR, "jobs wait for a signature: %s", error)
                self._complained = True
                return
            self._complained = False
            kind = AgentJobTopic if wanted.is_agent else JobTopic
            if self._publisher.publish(str(kind(wanted.site, wanted.device)), encode(signed), retain=True):
                self._jobs[key] = wanted.job
                what = "agent" if wanted.is_agent else "model"
                log.info("device %s: %s %s %s", wanted.device, wanted.job.action, what, wanted.job.model_digest[:12])

    def _is_turn(self) -> bool:
        now_s = time.monotonic()
        if now_s < self._turn_at_s:
            return False
        self._turn_at_s = now_s + CAMPAIGN_TURN_EVERY_S
        return True

    def publish_fetches(self, now_s: float, *, only: str | None = None) -> None:
        """Say what people have asked for and devices have not answered; `only` to one that has just come, whatever was said."""
        sites = fleet.active_devices(self._cat)
        wishes = fetches.open_wishes(self._cat)
        open_now = {fetch.request for asked in wishes.values() for fetch in asked}
        self._fetches_said = {request: at_s for request, at_s in self._fetches_said.items() if request in open_now}
        for device, asked in wishes.items():
            if device not in self._present or (only is not None and device != only):
                continue
            due = [
                fetch
                for fetch in asked
                if only is not None or now_s - self._fetches_said.get(fetch.request, -FETCH_AGAIN_S) >= FETCH_AGAIN_S
            ][:_FETCHES_A_MESSAGE]
            topic = str(ReceiptTopic(sites[device], device))
            if due and self._publisher.publish(topic, encode(Receipt(fetch=tuple(due)))):
                self._fetches_said.update({fetch.request: now_s for fetch in due})

    def publish_credit(self, bytes_in_flight: int) -> None:
        """Tell each site how much its devices may have on their way, when it differs from what is published already."""
        for site in sorted(set(fleet.active_devices(self._cat).values())):
            if self._credits.get(site) == bytes_in_flight:
                continue
            credit = encode(Credit(bytes_in_flight, int(time.time() * 1000), {REFERENCES: True}))
            if self._publisher.publish(str(CreditTopic(site)), credit, retain=True):
                if bytes_in_flight == 0:
                    log.warning(
                        "the disk has less free than ingest.stop_below_free_mib: the devices of site %s are told to keep their "
                        "frames, and nothing is lost; free some space",
                        site,
                    )
                elif self._credits.get(site) == 0:
                    log.warning("the disk has room again: the devices of site %s are told to go on", site)
                self._credits[site] = bytes_in_flight


def wanted_of(cat: Catalogue, active: Collection[str]) -> dict[str, Desired]:
    """What each active device should hold: frames, configuration and campaigns in one message. Devices that nobody has asked for
    anything are left out."""
    totals, wishes, shares = fleet.desired(cat), device_config.wishes(cat), campaigns.wished(cat)
    boosts, were_boosted = drift_rows.boosts(cat, int(time.time() * 1000)), drift_rows.were_boosted(cat)
    enough, tables = fleet_sketches.wished(cat), calibrations.wished(cat)
    found = {}
    for device in active:
        total = totals.get(device, Desired(0))  # with what it shall erase
        version, document, campaigns_version = wishes.get(device, (0, {}, 0))
        wanted = replace(
            total,
            config_version=version,
            config=document,
            campaigns_version=campaigns_version,
            campaigns=shares.get(device, ()),
            boost=boosts.get(device),
            enough=enough.get(device, b""),
            calibration=tables.get(device, b""),
        )
        if device in totals or version or campaigns_version or device in were_boosted or wanted.enough or wanted.calibration:
            found[device] = wanted
    return found
