"""Frames on their way from judgement to the spool thread: covered, encoded and handed over.

In: a frame, what the model sees in it (None without a model), and the judgement. Out: tasks for the spool thread, for the selection, a
campaign or a camera's surroundings, and what each frame cost in bytes. A frame that cannot be redacted is never handed over. It runs in
the inference thread, waits for no disk, and chooses nothing: what is admitted is `select.py`'s word, what a campaign may take
`campaign_book.py`'s.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from bowerbird_agent.errors import RedactionError
from bowerbird_agent.health import counters as names
from bowerbird_agent.selection.campaign import ARM, REASON
from bowerbird_agent.storing.storing import PictureAround, StoreFrame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bowerbird_agent.capture.capture import Frame
    from bowerbird_agent.health.counters import Counters
    from bowerbird_agent.inference.detecting import LoadedModel
    from bowerbird_agent.selection.campaign_book import CampaignBook
    from bowerbird_agent.selection.select import Judgement
    from bowerbird_agent.storing.encode import FrameEncoder
    from bowerbird_agent.storing.storing import StoringThread
    from bowerbird_models.detections import Detections
    from bowerbird_wire.messages import FrameHeader

logger = logging.getLogger(__name__)

# What `select.py` refuses for a reason that holds for campaigns too.
_NOT_FOR_CAMPAIGNS = frozenset({"already_chosen", "switched_off", "scoring_failed"})
_MOST_SOURCES_HELD = 4  # tasks that wait from which on whole pictures are not held for more than is sent


class Keeping:
    """The inference thread owns it; `redaction_trouble` may be read by others.

    Args:
        storing: tasks go there.
        encoder: makes headers and JPEGs.
        counters: totals that survive.
        bytes_left: bytes that the caps leave for more frames, None for no limit; must not block.
        campaigns: which frames are looked for beside the policy; None for none.
    """

    def __init__(
        self,
        storing: StoringThread,
        encoder: FrameEncoder,
        counters: Counters,
        *,
        bytes_left: Callable[[], int | None],
        campaigns: CampaignBook | None,
    ) -> None:
        self._storing, self._encoder, self._counters = storing, encoder, counters
        self._bytes_left, self._campaigns = bytes_left, campaigns
        self._unredacted: dict[str, str] = {}  # camera -> why its last frame could not be redacted

    @property
    def redaction_trouble(self) -> list[str]:
        """Why frames of a camera are not kept: they cannot be redacted. One line each camera, until one can be again."""
        return list(self._unredacted.values())

    def candidate(
        self, model: LoadedModel | None, frame: Frame, detections: Detections | None, judgement: Judgement
    ) -> tuple[str, int]:
        """Store an admitted frame as a candidate; returns its id and the size of its JPEG.

        The id is "" when the disk was behind, or when the frame could not be redacted and is therefore not kept.
        """
        made = self.encode(model, frame, detections, judgement)
        if made is None:
            return "", 0
        header, jpeg = made
        source = None
        if self._storing.fetching is not None and self._storing.backlog < _MOST_SOURCES_HELD:
            source = self._encoder.covered(frame, detections, _class_names(model)).frame
        if not self._storing.submit(StoreFrame(header, jpeg, source=source)):
            self._counters.count_dropped(frame.camera)
            return "", len(jpeg)
        return header.frame_id, len(jpeg)

    def for_campaign(
        self,
        model: LoadedModel | None,
        frame: Frame,
        seen_low: Detections | None,
        detections: Detections | None,
        judgement: Judgement | None,
    ) -> tuple[Judgement, str, int] | None:
        """Send a frame that a campaign looks for, whatever the policy thinks of it.

        Not what chance took (the audit must stay whole), what was sent before, or anything while sending is switched off; and inside
        the campaign's share and the byte budget. None: the frame goes its usual way. `seen_low` is what a redactor needs to see.

        Returns:
            The judgement as it is recorded, the frame's id and the size of its JPEG.
        """
        campaigns = self._campaigns
        if campaigns is None or campaigns.is_empty or detections is None or judgement is None or frame.repeat:
            return None
        if judgement.arm == "explore" or judgement.refused in _NOT_FOR_CAMPAIGNS:
            return None
        name = campaigns.match(frame.camera, frame.captured_at_ms, detections, _class_names(model))
        if not name:
            return None
        reasons = (REASON + name, *judgement.reasons)
        judgement = replace(judgement, admit=True, arm=ARM, reasons=reasons, refused="", bar=None)
        made = self.encode(model, frame, seen_low, judgement)
        if made is None:
            return None
        header, jpeg = made
        bytes_left = self._bytes_left()
        if (bytes_left is not None and len(jpeg) > bytes_left) or not campaigns.claim(name, len(jpeg)):
            return None
        if not self._storing.submit(StoreFrame(header, jpeg, name)):
            campaigns.give_back(name, len(jpeg))
            return None
        return judgement, header.frame_id, len(jpeg)

    def around(self, model: LoadedModel | None, frame: Frame, seen_low: Detections | None) -> None:
        """Give the surroundings of its camera a picture, covered like every other."""
        more = self._storing.fetching
        if more is None or self._storing.backlog >= _MOST_SOURCES_HELD or not more.wants(frame):
            return
        try:
            self._storing.submit(PictureAround(self._encoder.covered(frame, seen_low, _class_names(model))))
        except RedactionError as error:
            self._not_redacted(frame.camera, error)

    def encode(
        self, model: LoadedModel | None, frame: Frame, seen_low: Detections | None, judgement: Judgement
    ) -> tuple[FrameHeader, bytes] | None:
        """Header and JPEG of a frame, None when it could not be redacted and must not be kept."""
        try:
            made = self._encoder.frame(
                frame, judgement, seen_low, class_names=_class_names(model), model_digest="" if model is None else model.digest
            )
        except RedactionError as error:
            self._not_redacted(frame.camera, error)
            return None
        if frame.camera in self._unredacted:  # replaced whole: health reads it from another thread
            self._unredacted = {name: why for name, why in self._unredacted.items() if name != frame.camera}
        return made

    def _not_redacted(self, camera: str, error: RedactionError) -> None:
        self._counters.add(names.REDACTION_FAILURES)
        self._counters.count_dropped(camera)
        level = logging.DEBUG if camera in self._unredacted else logging.ERROR
        self._unredacted = {**self._unredacted, camera: str(error)}
        logger.log(level, "%s", error)


def _class_names(model: LoadedModel | None) -> Sequence[str]:
    """Of the model's classes; none without a model."""
    return () if model is None else model.detector.class_names
