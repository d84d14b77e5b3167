"""The simulated annotator: labels frames from ground truth, through the same JSON API that the review page uses.

In: the server's address, a token, and a function that knows what is really in a frame. Out: labels whose author is
"simulated annotator", and a tally. It outlives restarts of the server. It never looks at pixels, and it never answers for a
camera that the ground truth does not know: those frames stay in the queue for a person.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import httpx

from bowerbird_server.catalogue.core import new_id
from bowerbird_server.errors import BadInput, ServerError
from bowerbird_server.labelling.boxes import PRELABEL_CONFIDENCE, Box, box_fault, clip_box, count_edits
from bowerbird_server.labelling.ground_truth import TruthBox

log = logging.getLogger(__name__)

AUTHOR = "simulated annotator"
SMALLEST_SIDE_PX = 3.0
"""True objects thinner than this in the stored image are left out of the label: nobody could see them there."""

TruthFor = Callable[[str, int], "Sequence[TruthBox] | None"]

_LONGEST_WAIT_S = 10.0


@dataclass
class Tally:
    """What an annotator has done so far; `unknown` frames are those that the ground truth has no answer for."""

    frames: int = 0
    boxes: int = 0
    left_out: int = 0
    unknown: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Answer:
    """The label of one frame: boxes in pixels of the stored image, and how many true objects were left out as too small."""

    boxes: tuple[Box, ...]
    left_out: int


def answer(truth: Iterable[TruthBox], source_wh: tuple[int, int], stored_wh: tuple[int, int]) -> Answer:
    """Ground truth in source pixels as a label of the stored image: clipped, scaled, what is too small to see left out."""
    scale_x, scale_y = stored_wh[0] / source_wh[0], stored_wh[1] / source_wh[1]
    boxes, left_out = [], 0
    for class_name, (left, top, right, bottom) in truth:
        scaled = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
        inside = clip_box(scaled, *stored_wh)
        if (
            inside[2] - inside[0] < SMALLEST_SIDE_PX
            or inside[3] - inside[1] < SMALLEST_SIDE_PX
            or box_fault(inside, *stored_wh)
        ):
            left_out += 1
        else:
            boxes.append(Box(class_name, inside))
    return Answer(tuple(boxes), left_out)


def run_annotator(
    base_url: str,
    token: str,
    truth_for: TruthFor,
    stop: Event,
    *,
    seconds_per_box: float = 0.0,
    class_names: Sequence[str] | None = None,
    poll_s: float = 0.5,
    on_label: Callable[[Tally], None] | None = None,
    transport: httpx.BaseTransport | None = None,
) -> Tally:
    """Label what comes into the queue until `stop` is set.

    Args:
        base_url: e.g. `http://127.0.0.1:8080`.
        token: one of an operator, since classes are appended.
        truth_for: (camera id, sequence) -> boxes in source pixels, or None when unknown; a `GroundTruth`'s `boxes`.
        stop: ends it, within about the time of one request.
        seconds_per_box: how long the simulated person takes for a box; it is waited for and written into the label.
        class_names: all classes of the ground truth, added to the class list at the start, in this order.
        poll_s: wait between looks at an empty queue.
        on_label: called with the tally after each label.
        transport: for tests.

    Returns:
        The tally.

    Raises:
        ServerError: the server refuses the token.
    """
    with httpx.Client(
        base_url=base_url, headers={"Authorization": f"Bearer {token}"}, timeout=20.0, transport=transport, trust_env=False
    ) as client:
        annotator = _Annotator(client, truth_for, stop, seconds_per_box, on_label)
        to_add = list(class_names or [])
        wait_s = poll_s
        while not stop.is_set():
            try:
                if to_add:
                    annotator.add_classes(to_add)
                    to_add = []
                labelled = annotator.label_some()
                wait_s = 0.0 if labelled else poll_s
                annotator.failures = 0
            except (httpx.TransportError, _TryAgainError) as error:
                # The server restarts, or is not up yet: what was not confirmed is still in its queue.
                log.log(
                    logging.DEBUG if annotator.failures else logging.WARNING, "simulated annotator: %s; trying again", error
                )
                annotator.failures += 1
                wait_s = min(_LONGEST_WAIT_S, 0.25 * 2**annotator.failures)
            stop.wait(wait_s)
        return annotator.tally


class _TryAgainError(Exception):
    """The server could not answer now."""


class _Annotator:
    def __init__(
        self,
        client: httpx.Client,
        truth_for: TruthFor,
        stop: Event,
        seconds_per_box: float,
        on_label: Callable[[Tally], None] | None,
    ) -> None:
        self._client, self._truth_for, self._stop = client, truth_for, stop
        self._seconds_per_box, self._on_label = seconds_per_box, on_label
        self._classes: set[str] = set()
        self.tally = Tally()
        self.failures = 0

    def label_some(self) -> int:
        """Label one page of the queue that holds something we know; returns how many frames were labelled."""
        key: str | None = None
        while not self._stop.is_set():
            page = self._ask("GET", "/api/v1/queue", params={"limit": 50, **({"after": key} if key else {})})
            done = sum(self._label(frame) for frame in page["items"] if frame["id"] not in self.tally.unknown)
            key = page["next"]
            if done or key is None:
                return done
        return 0

    def add_classes(self, names: Iterable[str]) -> None:
        """Make sure that the class list holds these names."""
        reply = self._ask("POST", "/api/v1/classes", json={"names": list(names)})
        self._classes = {row["name"] for row in reply["items"]}

    def _label(self, frame: dict[str, Any]) -> bool:
        if self._stop.is_set():
            return False
        truth = self._truth_for(frame["camera"] or "", frame["sequence"])
        if truth is None:
            self.tally.unknown.add(frame["id"])
            log.warning("frame %s of %s: no ground truth; it stays for a person", frame["id"][:12], frame["camera"])
            return False
        started = time.monotonic()
        given = answer(truth, (frame["source_width"], frame["source_height"]), (frame["width"], frame["height"]))
        new = [box.class_name for box in given.boxes if box.class_name not in self._classes]
        if new:
            self.add_classes(new)
        self._stop.wait(self._seconds_per_box * max(1, len(given.boxes)) if self._seconds_per_box else 0.0)
        prelabels = [
            Box(row["class_name"], tuple(row["box_xyxy"])) for row in frame["detections"] if row["score"] >= PRELABEL_CONFIDENCE
        ]
        if given.left_out:
            log.info("frame %s: %d objects thinner than %g px left out", frame["id"][:12], given.left_out, SMALLEST_SIDE_PX)
        label = {
            "label_id": new_id(),
            "author": AUTHOR,
            "verdict": "labelled",
            "boxes": [{"class_name": box.class_name, "box_xyxy": list(box.box_xyxy)} for box in given.boxes],
            "seconds": round(time.monotonic() - started, 3),
            "edits": {**count_edits(prelabels, given.boxes), "left_out": given.left_out},
        }
        if not self._post_label(frame["id"], label):
            return False
        self.tally.frames += 1
        self.tally.boxes += len(given.boxes)
        self.tally.left_out += given.left_out
        if self._on_label is not None:
            self._on_label(self.tally)
        return True

    def _post_label(self, frame_id: str, label: dict[str, Any]) -> bool:
        """Save one label, repeating it under the same id while the server is away: it cannot be doubled."""
        while True:
            try:
                self._ask("POST", f"/api/v1/frames/{frame_id}/label", json=label)
                self.failures = 0
                return True
            except (httpx.TransportError, _TryAgainError) as error:
                log.log(
                    logging.DEBUG if self.failures else logging.WARNING,
                    "frame %s: label not saved yet: %s",
                    frame_id[:12],
                    error,
                )
                self.failures += 1
                if self._stop.wait(min(_LONGEST_WAIT_S, 0.25 * 2**self.failures)):
                    return False
            except BadInput as error:
                # This frame's label will never be taken (the frame was deleted, say): leave it, go on with the others.
                log.warning("frame %s: label refused: %s", frame_id[:12], error)
                self.tally.unknown.add(frame_id)
                return False

    def _ask(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
        reply = self._client.request(method, path, **rest)
        if reply.status_code in {401, 403}:
            raise ServerError(
                "the server refuses the simulated annotator's token; give it an operator's: "
                "`bowerbird tokens add annotator --role operator`"
            )
        if reply.status_code >= 500:
            raise _TryAgainError(f"{method} {path} answered {reply.status_code}")
        if reply.status_code >= 400:
            raise BadInput(f"{method} {path} answered {reply.status_code}: {reply.text[:300]}")
        found: dict[str, Any] = reply.json()
        return found
