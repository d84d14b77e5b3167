"""What Prometheus reads at `/metrics`: the catalogue's counts, the disk, and what each device last reported.

In: catalogue and blob store, read anew at each scrape. Out: Prometheus' text format. It keeps nothing between scrapes, so that every
web process and every restart gives the same numbers; it names no frame and no person.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.catalogue import campaigns, device_config, overview, references
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.web.stores import stores
from bowerbird_wire.spent import kinds_of
from bowerbird_wire.telemetry import read

router = APIRouter()

# Counters in the health message of a device -> what they count. They survive the agent's restarts.
DEVICE_COUNTERS: Mapping[str, str] = {
    "frames_seen": "Frames that the device's cameras gave.",
    "frames_scored": "Frames that the device's model looked at.",
    "frames_selected": "Frames that the device chose to send.",
    "frames_committed": "Frames that the device has a receipt for.",
    "frames_dropped": "Frames that the device lost before they were scored.",
    "bytes_sent": "Bytes sent by the device, resends and control included.",
    "bytes_received": "Bytes received by the device.",
}


class SiteMetrics(Collector):
    """Reads the site when Prometheus asks."""

    def __init__(self, cat: Catalogue, blobs: LocalBlobs) -> None:
        self._cat, self._blobs = cat, blobs

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the site."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric with its values now."""
        now = overview.summary(self._cat)
        yield _by("bowerbird_frames", "Frames in the catalogue.", "state", now["frames"])
        yield GaugeMetricFamily(
            "bowerbird_reference_frames", "Frames among them that show their twin's picture.", value=references.count(self._cat)
        )
        yield GaugeMetricFamily("bowerbird_image_bytes", "Bytes of images in the catalogue.", value=now["frame_bytes"])
        yield GaugeMetricFamily("bowerbird_queue_frames", "Frames that wait for a label.", value=now["queue"])
        yield GaugeMetricFamily("bowerbird_labelled_frames", "Frames with a label.", value=now["labels"])
        yield CounterMetricFamily("bowerbird_label_seconds", "Time that annotators spent.", value=now["label_seconds"])
        yield GaugeMetricFamily("bowerbird_dataset_versions", "Data set versions.", value=now["datasets"])
        yield GaugeMetricFamily("bowerbird_models", "Models.", value=now["models"])
        refused = overview.dead_letters_by_code(self._cat)
        yield _by("bowerbird_dead_letters", "Refused messages that are kept for a look.", "code", refused)
        yield _by("bowerbird_rollout_devices", "Devices in rollouts that run.", "state", overview.rollout_states(self._cat))
        running = [row for row in campaigns.list_campaigns(self._cat) if row["state"] == "running"]
        taken = {row["id"]: row["frames_received"] for row in running}
        yield _by("bowerbird_campaign_frames", "Frames received for campaigns that run.", "campaign", taken)
        quotas = {row["id"]: row["frames"] for row in running}
        yield _by("bowerbird_campaign_quota_frames", "Frames that they ask for.", "campaign", quotas)
        states = device_config.states(self._cat)
        yield _by("bowerbird_device_configurations", "Devices by what they made of their configuration.", "state", states)
        yield GaugeMetricFamily("bowerbird_disk_free_bytes", "Free on the blobs' disk.", value=self._blobs.free_bytes())
        yield from _devices(overview.devices(self._cat))


def _by(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def _devices(rows: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    who = ["device", "site"]
    online = GaugeMetricFamily("bowerbird_device_online", "1 while the device is connected.", labels=who)
    heard = GaugeMetricFamily("bowerbird_device_health_timestamp_seconds", "When it last reported its health.", labels=who)
    received = CounterMetricFamily("bowerbird_device_frames_received", "Frames committed here from the device.", labels=who)
    image_bytes = CounterMetricFamily("bowerbird_device_image_bytes_received", "Bytes of their images.", labels=who)
    rate = GaugeMetricFamily("bowerbird_device_frame_rate", "Frames a second that the device's model looks at.", labels=who)
    latency = GaugeMetricFamily("bowerbird_device_inference_seconds", "Time of the device's model for a frame.", labels=who)
    spool = GaugeMetricFamily("bowerbird_device_spool_frames", "Frames in the device's spool.", labels=[*who, "state"])
    evicted = CounterMetricFamily(
        "bowerbird_device_evicted_frames", "Frames that a full spool gave up.", labels=[*who, "reason"]
    )
    spent = CounterMetricFamily(
        "bowerbird_device_bytes", "Bytes of the device, both ways, by what they were spent on.", labels=[*who, "kind"]
    )
    round_trip = GaugeMetricFamily("bowerbird_device_round_trip_seconds", "From the device to the broker and back.", labels=who)
    temperature = GaugeMetricFamily("bowerbird_device_temperature_celsius", "The device's hottest sensor.", labels=who)
    reconnects = GaugeMetricFamily(
        "bowerbird_device_reconnects", "Connections of the device after the first, since its agent's start.", labels=who
    )
    latencies = CounterMetricFamily(
        "bowerbird_device_frames_by_latency", "Frames by time of the model: upper end in milliseconds.", labels=[*who, "ms"]
    )
    scores = CounterMetricFamily(
        "bowerbird_device_frames_by_score", "Frames by score of their best box: lower end of a tenth.", labels=[*who, "score"]
    )
    counters = {
        name: CounterMetricFamily(f"bowerbird_device_{name}", text, labels=who) for name, text in DEVICE_COUNTERS.items()
    }
    for row in rows:
        if row["state"] != "active":
            continue
        labels, health = [row["id"], row["site"]], row["health"]
        online.add_metric(labels, row["online"])
        received.add_metric(labels, row["frames_received"])
        image_bytes.add_metric(labels, row["image_bytes"] or 0)
        if row["health_at"] is None:
            continue
        heard.add_metric(labels, datetime.fromisoformat(row["health_at"]).timestamp())
        rate.add_metric(labels, health.get("fps", 0.0))
        latency.add_metric(labels, health.get("inference_ms", 0.0) / 1000)
        for name, family in counters.items():
            family.add_metric(labels, health.get(name, 0))
        told = read(health.get("extra", {}).get("tm"))
        if told.rtt_ms is not None:
            round_trip.add_metric(labels, told.rtt_ms / 1000)
        if told.hottest_c is not None:
            temperature.add_metric(labels, told.hottest_c)
        reconnects.add_metric(labels, told.reconnects)
        for kind, size in kinds_of(health.get("extra", {}).get("spent")).items():
            spent.add_metric([*labels, kind], size)
        for end, count in told.latency.items():
            latencies.add_metric([*labels, end], count)
        for begin, count in told.scores.items():
            scores.add_metric([*labels, begin], count)
        for state, count in sorted(health.get("spool", {}).items()):
            spool.add_metric([*labels, state], count)
        for reason, count in sorted(health.get("evicted", {}).items()):
            evicted.add_metric([*labels, reason], count)
    yield from (online, heard, received, image_bytes, rate, latency, spool, evicted, *counters.values())
    yield from (spent, round_trip, temperature, reconnects, latencies, scores)


@router.get("/metrics", summary="Prometheus' text format; with the token, as everything here.")
def metrics(request: Request) -> Response:
    """The site's numbers now."""
    cat, blobs = stores(request)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SiteMetrics(cat, blobs))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
