"""The messages, each a frozen value with a schema version. `codec.py` turns them into bytes and back.

In: nothing. Out: value types. Field metadata holds the short key that a field has on the wire, since every byte counts there.
A new meaning is a new key with a default; unknown keys are kept in `extra` and sent on; a breaking change is a new topic tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

OF = "of"  # extra key of a Job or a Report that is not of a model: "agent"
REFERENCES = "rf"  # extra key of a Credit, true where the server takes frames as references to their twins


def _key(short: str) -> dict[str, str]:
    return {"key": short}


def _extra() -> Any:
    return field(default_factory=dict, metadata=_key(""))


def _opt(short: str, default: Any) -> Any:
    return field(default=default, metadata=_key(short))


@dataclass(frozen=True)
class Message:
    """Base of all messages; `VERSION` is sent as key `v`."""

    VERSION: ClassVar[int] = 1


@dataclass(frozen=True)
class WireDetection(Message):
    """One detection of the device's model, in pixels of the *sent* image."""

    box_xyxy: tuple[float, float, float, float] = field(metadata=_key("b"))
    score: float = field(metadata=_key("s"))
    class_name: str = field(metadata=_key("c"))


@dataclass(frozen=True)
class Redaction(Message):
    """A region that the device made unrecognisable before the frame was stored, in pixels of the *sent* image.

    `method` is `fill`, `pixelate` or `blur`; `score` is the confidence of the detection that called for it.
    """

    box_xyxy: tuple[float, float, float, float] = field(metadata=_key("b"))
    class_name: str = field(metadata=_key("c"))
    method: str = _opt("k", "fill")
    score: float = _opt("s", 0.0)


@dataclass(frozen=True)
class FrameHeader(Message):
    """Everything the server learns about a frame beside its image.

    `frame_id` is the SHA-256 over the image's digest and the immutable fields (see `codec.frame_id`), 64 hex digits. `sequence`
    is the frame's number in its source (the frame index of a film, the capture count of a live camera). `captured_at_ms` is UTC
    wall time since the epoch; `clock_ok` is False while the device's clock is not to be trusted. `twin` is the id of an earlier
    frame of the camera in which nothing was different, itself without one; a frame with a twin may be sent without its picture
    (`codec.encode_reference`).
    """

    frame_id: str = field(metadata=_key("id"))
    image_sha256: str = field(metadata=_key("im"))
    device: str = field(metadata=_key("d"))
    camera: str = field(metadata=_key("cam"))
    sequence: int = field(metadata=_key("n"))
    captured_at_ms: int = field(metadata=_key("t"))
    width: int = field(metadata=_key("w"))
    height: int = field(metadata=_key("h"))
    image_format: str = _opt("f", "jpeg")
    quality: int = _opt("q", 0)
    source_width: int = _opt("sw", 0)
    source_height: int = _opt("sh", 0)
    boot_id: str = _opt("boot", "")
    monotonic_ns: int = _opt("mono", 0)
    clock_ok: bool = _opt("ck", True)
    model_digest: str = _opt("m", "")
    # "policy": chosen by score; "explore": the random audit; "campaign": looked for; "fetched": asked for, see `linked.py`
    arm: str = _opt("a", "policy")
    reasons: tuple[str, ...] = _opt("r", ())  # the strategies that spoke for it
    score: float = _opt("s", 0.0)
    strategy_scores: Mapping[str, float] = field(default_factory=dict, metadata=_key("ss"))
    inclusion_probability: float = _opt("p", 1.0)
    detections: tuple[WireDetection, ...] = _opt("det", ())
    redacted: tuple[Redaction, ...] = _opt("rd", ())
    twin: str = _opt("tw", "")
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class FrameMessage:
    """A header and the encoded image it describes."""

    header: FrameHeader
    image: bytes


@dataclass(frozen=True)
class Refusal(Message):
    """A frame that the server will never take; `code` is a `WireError.code` or `deleted`, `too_large`, `bad_image`, `near_duplicate`.

    `frame_id` is empty when the server knows the frame by its `transfer` only.
    """

    frame_id: str = field(metadata=_key("id"))
    code: str = field(metadata=_key("c"))
    detail: str = _opt("d", "")
    transfer: bytes = _opt("tr", b"")


@dataclass(frozen=True)
class Want(Message):
    """A frame that the server does not have, and which blocks of it it does: bit i of `have` is block i, lowest bit first.

    `frame` (32 bytes) or `transfer` (16 bytes) is empty where the server does not know it. See `transfer.py`.
    """

    frame: bytes = _opt("id", b"")
    transfer: bytes = _opt("tr", b"")
    have: bytes = _opt("h", b"")


@dataclass(frozen=True)
class Fetch(Message):
    """Asks for more of a frame than was sent: the picture as the camera gave it, or the frames around it.

    `request` (16 bytes) names the wish: the same one again changes nothing. `seconds`: how far around, to both sides.
    """

    request: bytes = field(metadata=_key("rq"))
    frame: bytes = field(metadata=_key("id"))
    kind: str = field(metadata=_key("k"))  # "original" | "around"
    seconds: float = _opt("s", 0.0)
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class FetchAnswer(Message):
    """What a device does about a `Fetch`: `sent` (these frames are in its spool), `refused` (the code says why) or `gone`."""

    request: bytes = field(metadata=_key("rq"))
    state: str = field(metadata=_key("s"))
    frames: tuple[bytes, ...] = _opt("f", ())
    code: str = _opt("c", "")
    detail: str = _opt("d", "")
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Receipt(Message):
    """Frames that are committed at the server, that never will be, and that it would like. Only the first two delete from a spool.

    `fetch`: what else the server would like. `hold_s`: send no frames for so many seconds, the device is over its limit there.
    `buried`: all tombstones up to this number are noted.
    """

    committed: tuple[str, ...] = _opt("ok", ())
    refused: tuple[Refusal, ...] = _opt("no", ())
    wanted: tuple[Want, ...] = _opt("w", ())
    fetch: tuple[Fetch, ...] = _opt("fe", ())
    hold_s: float = _opt("hs", 0.0)
    buried: int = _opt("tb", 0)
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Chunk(Message):
    """A run of blocks of a frame message, which is too long for its link. `transfer.py` has the rules.

    `transfer` names the message (16 bytes), `total_bytes` is its size, `first_block` where `data` begins in it, in blocks.
    """

    transfer: bytes = field(metadata=_key("tr"))
    total_bytes: int = field(metadata=_key("n"))
    first_block: int = field(metadata=_key("i"))
    data: bytes = field(metadata=_key("x"))
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Offer(Message):
    """Asks for a word about a frame: committed, refused or wanted, as a receipt. About 40 bytes.

    `frame` is the frame id (32 bytes). `transfer` and `total_bytes` say under which name parts of it may have arrived.
    `thumbnail` is the picture as `thumbnail.py` makes it, so that the server can refuse what it has already; empty for none.
    """

    frame: bytes = field(metadata=_key("id"))
    transfer: bytes = _opt("tr", b"")
    total_bytes: int = _opt("n", 0)
    thumbnail: bytes = _opt("th", b"")
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Credit(Message):
    """Retained for all devices of a site: how many bytes of frames each may have on their way. 0 stops frames; control goes on."""

    bytes_in_flight: int = field(metadata=_key("b"))
    at_ms: int = _opt("t", 0)
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Status(Message):
    """Retained presence of a device; the broker publishes the `offline` form as its will."""

    state: str = field(metadata=_key("s"))  # "online" | "offline"
    boot_id: str = _opt("boot", "")
    agent_version: str = _opt("av", "")
    model_digest: str = _opt("m", "")
    at_ms: int = _opt("t", 0)
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Health(Message):
    """Counters since the agent's first start (they survive restarts) and the current state."""

    boot_id: str = field(metadata=_key("boot"))
    at_ms: int = field(metadata=_key("t"))
    model_digest: str = _opt("m", "")
    frames_seen: int = _opt("fs", 0)
    frames_scored: int = _opt("fc", 0)
    frames_selected: int = _opt("fk", 0)
    frames_committed: int = _opt("fx", 0)
    frames_dropped: int = _opt("fd", 0)
    bytes_sent: int = _opt("bs", 0)  # the whole uplink at the link: headers, resends, control
    bytes_received: int = _opt("br", 0)
    rule_frames: int = _opt("rf", 0)  # what `max conf < 0.6` would have sent
    rule_bytes: int = _opt("rb", 0)
    all_bytes: int = _opt("ab", 0)  # every distinct source frame at the same size and encoder
    round_frames_seen: int = _opt("rs", 0)  # since the model or the desired version changed
    desired_version: int = _opt("dv", 0)  # the newest `Desired` the device has taken up
    spool: Mapping[str, int] = field(default_factory=dict, metadata=_key("sp"))  # frames by state
    evicted: Mapping[str, int] = field(default_factory=dict, metadata=_key("ev"))  # counts by reason
    cameras: Mapping[str, str] = field(default_factory=dict, metadata=_key("cm"))  # camera -> "ok" or what is wrong
    fps: float = _opt("fps", 0.0)
    inference_ms: float = _opt("ims", 0.0)
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Campaign(Message):
    """One device's share of a search: the next `frames` frames, of `bytes` bytes together, in which the condition holds.

    Both are totals since the campaign began, so that a repeated message changes nothing; a share below what was taken already stops
    the device. The condition: at least `count_min` and at most `count_max` boxes of `class_name` ("" any) with
    `at_least` <= score < `below` (None: no bound); one of `cameras` (() all); a time of day in `hours` (() always). After a frame the
    same camera waits `gap_s`.
    """

    campaign: str = field(metadata=_key("i"))
    frames: int = field(metadata=_key("f"))
    bytes: int = field(metadata=_key("b"))
    until_ms: int = field(metadata=_key("u"))
    class_name: str = _opt("c", "")
    at_least: float = _opt("lo", 0.25)
    below: float | None = _opt("hi", None)
    count_min: int = _opt("n1", 1)
    count_max: int | None = _opt("n2", None)
    cameras: tuple[str, ...] = _opt("cm", ())
    hours: tuple[str, ...] = _opt("h", ())
    gap_s: float = _opt("g", 1.0)
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Boost(Message):
    """More exploration and a higher target rate until then, inside the caps: what the server wants after a drift or of a new camera.

    `factor` multiplies the audit's share and the frames of a window; 1 changes nothing. `cameras`: each camera that is meant and when
    its boost ends, UTC ms; empty for all of them until `until_ms`, which is how agents that do not know the field take it.
    """

    until_ms: int = field(metadata=_key("u"))
    factor: float = _opt("f", 2.0)
    cameras: Mapping[str, int] = field(default_factory=dict, metadata=_key("cm"))
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Tombstone(Message):
    """A frame of the random sample, or one that was asked for, that left the spool unsent; estimates have to allow for it.

    `number` counts them on their device. `why` is `evicted:` or `dropped:` and the reason.
    """

    number: int = field(metadata=_key("n"))
    frame: bytes = field(metadata=_key("id"))
    arm: str = field(metadata=_key("a"))
    why: str = field(metadata=_key("y"))
    score: float = _opt("s", 0.0)
    inclusion_probability: float = _opt("p", 0.0)
    camera: str = _opt("cam", "")
    captured_at_ms: int = _opt("t", 0)


@dataclass(frozen=True)
class Tombstones(Message):
    """What left the spool unsent: counts since the agent's first start, and by name what estimates have to allow for.

    `evicted` and `dropped` count by `reason.group.score bin`. Names are said until a receipt has `buried` them.
    """

    at_ms: int = field(metadata=_key("t"))
    evicted: Mapping[str, int] = field(default_factory=dict, metadata=_key("ev"))
    dropped: Mapping[str, int] = field(default_factory=dict, metadata=_key("dr"))
    named: tuple[Tombstone, ...] = _opt("ts", ())
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class EraseWish(Message):
    """Frames that a device must forget: those named, and those of a camera and interval (both ends inclusive, UTC ms).

    `camera` is empty for all cameras. With `to_ms` below `from_ms` the wish is for the named frames only. Carrying one out again
    changes nothing; the device answers with the wish's id in its health until the wish is no longer there.
    """

    wish: str = field(metadata=_key("i"))
    camera: str = _opt("c", "")
    from_ms: int = _opt("f", 0)
    to_ms: int = _opt("t", -1)
    frames: tuple[str, ...] = _opt("id", ())

    def covers(self, frame_id: str, camera: str, captured_at_ms: int) -> bool:
        """Whether a frame is to be forgotten."""
        in_interval = self.from_ms <= captured_at_ms <= self.to_ms and self.camera in ("", camera)
        return in_interval or frame_id in self.frames


@dataclass(frozen=True)
class Desired(Message):
    """What the server wants of a device, as totals so that a repeated or late message changes nothing.

    `frames_total` is how many frames the device may have sent since it was made, None for no limit: there is no use in paying
    for the transport of frames that nobody has time to label. `erase` holds whatever of a version: it is obeyed always.
    `config` is merged over the device's own agent.toml where that allows it (`docs/remote-configuration.md`); it and `campaigns` have
    versions of their own, since a new `version` begins a new round and they do not. 0 says that nothing was ever wished.
    `enough` is what the fleet has enough of (`fleet_sketch.py`), `calibration` what the scores of the device's model are worth
    (`calibration_table.py`); empty for nothing, and a message without takes it back.
    """

    version: int = field(metadata=_key("n"))
    frames_total: int | None = _opt("ft", None)
    config_version: int = _opt("cn", 0)
    config: Mapping[str, Any] = field(default_factory=dict, metadata=_key("c"))
    campaigns_version: int = _opt("kn", 0)
    campaigns: tuple[Campaign, ...] = _opt("k", ())
    boost: Boost | None = field(default=None, metadata=_key("bo"))  # ends by itself
    erase: tuple[EraseWish, ...] = _opt("er", ())
    enough: bytes = _opt("nv", b"")
    calibration: bytes = _opt("ct", b"")
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Reported(Message):
    """What a device made of the newest `config` and `campaigns`: retained, sent when it changes.

    `config_version` is the newest wish it has judged, `in_force` the one it runs with (0: agent.toml alone), `state` one of "none",
    "in_force", "trial", "refused" and "fell_back", which is about `config_version`. `digest` is that of the document in force
    (`codec.config_digest`), `faults` why a wish is not in force, `differs` key paths in which the device's own file has its way.
    `campaigns` says for each how many frames and bytes were taken for it, under `campaigns_version`.
    """

    config_version: int = _opt("n", 0)
    in_force: int = _opt("f", 0)
    state: str = _opt("s", "none")
    digest: bytes = _opt("d", b"")
    faults: tuple[str, ...] = _opt("r", ())
    differs: tuple[str, ...] = _opt("df", ())
    campaigns_version: int = _opt("kn", 0)
    campaigns: Mapping[str, tuple[int, int]] = field(default_factory=dict, metadata=_key("k"))
    campaign_faults: Mapping[str, str] = field(default_factory=dict, metadata=_key("kr"))
    at_ms: int = _opt("t", 0)
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Job(Message):
    """Which model a device should run: a name that signed TUF targets metadata must know, and nothing that could replace it."""

    job_id: str = field(metadata=_key("j"))
    model_digest: str = field(metadata=_key("m"))  # SHA-256 of the package's manifest
    release: int = field(metadata=_key("n"))  # release counter; never falls
    action: str = _opt("a", "install")  # "install" | "cancel"
    created_at_ms: int = _opt("t", 0)
    signature: bytes = _opt("sig", b"")  # by the director key that the targets metadata delegates to
    key_id: str = _opt("kid", "")
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Report(Message):
    """What became of a job on the device; `running_digest` is the model that answers frames now.

    `signature` is ECDSA with SHA-256 over `report_proof.report_bytes` by the key of `certificate` (DER), the device's own; both
    are empty from a device without an identity.
    """

    job_id: str = field(metadata=_key("j"))
    state: str = field(metadata=_key("s"))  # a state of the updater, lower case
    running_digest: str = field(metadata=_key("m"))
    running_file_digest: str = _opt("mf", "")
    model_digest: str = _opt("jm", "")  # the job's model
    code: str = _opt("c", "")  # "" or why it was refused or rolled back
    detail: str = _opt("d", "")
    at_ms: int = _opt("t", 0)
    signature: bytes = _opt("sig", b"")
    certificate: bytes = _opt("crt", b"")
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class BlockRequest(Message):
    """Asks for part of a file of the update repository, e.g. `metadata/timestamp.json` or `targets/<sha256>.model.onnx`."""

    path: str = field(metadata=_key("p"))
    first_block: int = _opt("i", 0)
    blocks: int = _opt("k", 1)
    block_bytes: int = _opt("z", 32768)
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Block(Message):
    """One block of a file; `error` is set instead of data when the file is not there."""

    path: str = field(metadata=_key("p"))
    index: int = field(metadata=_key("i"))
    block_bytes: int = field(metadata=_key("z"))
    total_bytes: int = _opt("n", 0)
    data: bytes = _opt("x", b"")
    error: str = _opt("e", "")
    extra: Mapping[str, Any] = _extra()
