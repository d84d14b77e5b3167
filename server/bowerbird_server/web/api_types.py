"""The shapes of the JSON API, which are also its OpenAPI description. Nothing happens here.

Names and units are those of the catalogue; boxes are `[left, top, right, bottom]` in pixels of the stored image.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# A bool is no number, though Python takes it for one.
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class _Out(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _In(BaseModel):
    # A misspelt key must not be taken for its default.
    model_config = ConfigDict(extra="forbid")


class Problem(_Out):
    """What went wrong; `message` says what to do."""

    code: str
    message: str
    details: list[str] = []


class ErrorAnswer(_Out):
    """Every answer with a status of 400 or more."""

    error: Problem


class Detection(_Out):
    """What the device's model saw; from score 0.25 on a pre-label, below it a hint."""

    class_name: str
    score: float
    box_xyxy: list[float]


class LabelBox(_In):
    """One labelled object."""

    class_name: str = Field(max_length=64)
    box_xyxy: tuple[Finite, Finite, Finite, Finite]


class Label(_Out):
    """A label as it is kept; the highest revision holds."""

    id: str
    revision: int
    author: str
    created_at: str
    verdict: Literal["labelled", "rejected"]
    boxes: list[LabelBox]
    classes_reviewed: list[str]
    seconds: float | None
    edits: dict[str, int]


class Frame(_Out):
    """A frame: where it is from, why it was sent, and its state."""

    id: str
    device: str | None
    camera: str | None
    sequence: int
    captured_at: str
    received_at: str
    clock_ok: bool
    image_url: str
    image_format: str
    bytes: int
    width: int
    height: int
    source_width: int
    source_height: int
    model: str
    arm: str
    reasons: list[str]
    score: float
    strategy_scores: dict[str, float]
    inclusion_probability: float
    scene: str
    state: str


class WhyQueued(_Out):
    """A batch that a frame was put in, and why."""

    batch: str
    created_at: str
    why: str


class FrameDetail(Frame):
    """A frame with what the model saw, what people said, and in words why its device chose it."""

    detections: list[Detection]
    label: Label | None
    queued: list[WhyQueued]
    explanation: str


class FetchIn(_In):
    """What to ask a frame's device for."""

    kind: Literal["original", "around"]
    seconds: float = Field(0.0, ge=0, le=60, description="How far around, to both sides; for `around` only")


class FetchRow(_Out):
    """Something that was asked: `asked`, `sent` (on its way), `arrived`, `refused` (see `code`) or `gone`."""

    id: str
    kind: str
    seconds: float
    state: str
    code: str
    detail: str
    asked_at: str
    asked_by: str
    answered_at: str | None
    frames: int = Field(description="Frames that the device says will come")
    arrived: int = Field(description="Frames of those that are here")


class LinkedFrame(Frame):
    """A frame that belongs to another."""

    kind: str


class Parent(_Out):
    """The frame that one belongs to."""

    of_frame: str
    kind: str


class Fetches(_Out):
    """What was asked about a frame, what came of it, what it belongs to itself, and how many frames show its picture as well."""

    items: list[FetchRow]
    linked: list[LinkedFrame]
    parent: Parent | None
    references: int


class UnsentFrame(_Out):
    """A frame that left its device's spool unsent, known by name."""

    frame: str
    arm: str
    why: str
    score: float
    inclusion_probability: float
    camera: str
    captured_at: str


class Unsent(_Out):
    """What a device kept and never sent: counts by `reason.group.score bin`, names by arm, the newest of them."""

    at: str | None
    evicted: dict[str, int]
    dropped: dict[str, int]
    named: dict[str, int]
    frames: list[UnsentFrame]


class QueueItem(Frame):
    """A frame that waits for a label."""

    detections: list[Detection]
    batch: str
    position: int
    why: str


class FramePage(_Out):
    """Frames, newest first; ask again with `after=next` until `next` is null."""

    items: list[Frame]
    next: str | None


class QueuePage(_Out):
    """Waiting frames in the order to label them; `length` counts all of them."""

    items: list[QueueItem]
    next: str | None
    length: int


class LabelIn(_In):
    """A label to take."""

    verdict: Literal["labelled", "rejected"] = "labelled"
    boxes: list[LabelBox] = Field(default=[], max_length=2000)
    classes_reviewed: list[str] | None = Field(default=None, description="The classes looked for; all known ones when left out")
    seconds: Finite | None = Field(default=None, ge=0)
    edits: dict[str, int] | None = Field(
        default=None,
        description="Counts of kept, moved, added, deleted, reclassed, left_out; left out: counted here against what the model showed",
    )
    author: str | None = Field(default=None, max_length=80, description="With a token only; a session labels in its own name")
    label_id: str | None = Field(default=None, description="A UUID made by the client: the same save again changes nothing")


class LabelTaken(_Out):
    """A label was taken; `queue` frames still wait."""

    frame: str
    revision: int
    state: str
    queue: int


class Device(_Out):
    """A device with its newest health."""

    id: str
    site: str
    state: str
    online: bool
    agent_version: str
    model_digest: str
    status_at: str | None
    health_at: str | None
    health: dict[str, Any]
    cameras: list[str]
    desired_version: int
    frames_total: int | None
    frames_received: int
    image_bytes: int
    certificate_until: str | None
    trouble: str
    label: str
    serial: str
    state_why: str
    replaces: str | None


class Model(_Out):
    """A model, how it did and what the gate said."""

    digest: str
    created_at: str
    parent: str | None
    dataset_version: str | None
    dataset_number: int | None
    training_run: str | None
    origin: str
    state: str
    class_names: list[str]
    metrics: dict[str, Any]
    verdict: dict[str, Any]
    release: int | None


class ModelDetail(Model):
    """A model with the devices that report to run it."""

    devices: list[str]


class DatasetVersion(_Out):
    """An immutable data set version."""

    id: str
    number: int
    created_at: str
    frames: int
    boxes: int
    splits: dict[str, int]
    removed: list[str] = Field(
        default_factory=list, description="Frames in it that were deleted since; it is used without them."
    )


class TrainingRun(_Out):
    """A training run and how far it is."""

    id: str
    created_at: str
    dataset_version: str
    dataset_number: int | None
    base_model: str | None
    model: str | None
    state: str
    epoch: int
    epochs: int
    started_at: str | None
    finished_at: str | None
    error: str


class Execution(_Out):
    """A rollout on one device."""

    device: str
    wave: int
    state: str
    code: str
    detail: str
    updated_at: str


class Rollout(_Out):
    """A rollout with its devices."""

    id: str
    created_at: str
    model: str | None  # None of a rollout of the agent
    agent: str  # release digest, "" of a rollout of a model
    agent_version: str
    release: int
    state: str
    finished_at: str | None
    executions: list[Execution]


class RolloutIn(_In):
    """A rollout to start; all active devices when none are named."""

    model: str = Field(max_length=64, description="Digest of a published model, or the beginning of it")
    devices: list[Annotated[str, Field(max_length=64)]] | None = Field(default=None, min_length=1, max_length=10_000)


class DeviceStep(_In):
    """Why a device's state is changed."""

    why: str = Field(default="", max_length=200)


class DeviceApproval(DeviceStep):
    """In whose place a board is let in."""

    replaces: str | None = Field(default=None, max_length=63, description="That device retires, its cameras go on")


class Alarm(_Out):
    """Something about a device that a person should look at."""

    at: str
    subject: str
    why: Any


class Alarms(_Out):
    items: list[Alarm]


class Event(_Out):
    """Who did what to what, and why."""

    id: str
    at: str
    actor: str
    kind: str
    subject: str
    why: Any


class AuditEvent(Event):
    """An event as evidence: from where it was asked for, its place in the log and its digest."""

    origin: str
    position: int
    digest: str


class Sight(_Out):
    """Somebody was shown a frame; the first time of that day."""

    at: str
    person: str
    frame: str
    origin: str


class ClassName(_Out):
    """A class; ids never change."""

    id: int
    name: str


class ClassesIn(_In):
    """Names to append to the class list; known ones change nothing."""

    names: list[str] = Field(min_length=1, max_length=1000)


class BatchIn(_In):
    """A batch to open."""

    frames: int = Field(ge=1, le=100_000)
    min_gap_s: Finite = Field(default=10.0, ge=0, le=86_400)


class Batch(_Out):
    """A batch and how far it is."""

    id: str
    created_at: str
    state: str
    frames: int
    waiting: int
    labelled: int
    rejected: int


class Devices(_Out):
    items: list[Device]


class Models(_Out):
    items: list[Model]


class Datasets(_Out):
    items: list[DatasetVersion]


class TrainingRuns(_Out):
    items: list[TrainingRun]


class Rollouts(_Out):
    items: list[Rollout]


class Events(_Out):
    items: list[Event]
    next: str | None


class AuditEvents(_Out):
    items: list[AuditEvent]


class Sights(_Out):
    items: list[Sight]


class Classes(_Out):
    items: list[ClassName]


class Batches(_Out):
    items: list[Batch]


class Summary(_Out):
    """Counts over everything."""

    frames: dict[str, int]
    frame_bytes: int
    queue: int
    labels: int
    label_seconds: float
    devices: int
    devices_online: int
    datasets: int
    models: int
    champion: str | None
    classes: list[str]


class Health(_Out):
    """The web process answers and can read its catalogue."""

    status: Literal["ok"]
