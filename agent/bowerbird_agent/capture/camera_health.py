"""Whether a live camera still shows what it should: frozen, dark, blurred or moved. Pure: time comes in as an argument.

In: a look at a picture about once a second. Out: "ok" or the name of what is wrong. It compares with what this camera itself showed
before, so a camera that was blurred when it was put up is not noticed, and a reference is learned anew after a restart. It
keeps no picture larger than a thumbnail, drops no frame and writes no log.

Each sign is looked for by two limits (yes beyond one, no beyond the other, unsure between) and has to last before it is said and to
be gone before it is taken back: `TRANSITIONS`.
"""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import cv2
import numpy as np

from bowerbird_agent.selection.gate import sampled_gray, thumbnail_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

OK = "ok"
LOOK_EVERY_S = 1.0
# What a person at the camera, or at its settings, would do.
ADVICE = {
    "frozen": "the same picture again and again: restart the camera or its encoder",
    "dark": "nothing can be seen: is the lens covered, the light off or the exposure wrong?",
    "blurred": "less sharp than it was: clean the lens, or focus it again",
    "moved": "it looks at something else than before: put it back, or leave it and the new view is taken as the right one",
}
# States in which a picture has nothing, or nothing new, to label. A blurred or moved camera shows something, and may be well after all.
SHOWS_NOTHING = frozenset({"dark", "frozen"})
_LEARN_LOOKS = 15
_RECENT_LOOKS = 9  # whose median shows no passers-by
_LEAST_LOOKS = 3  # a slow camera: a sign needs at least so many looks however long they took
_SETTLE_S = 3600.0  # a camera that was moved on purpose is at home in its new view after an hour
_MOST_VIEWS = 4  # by day, by night under its own infra-red light, ...
_FOLLOW_EVERY_S = 60.0
# Limits "yes" and "no"; measured on scenes and on real footage: twenty pixels of 768 are no move, sixty are; a blur of sigma 1 is
# in between, one of 2 leaves a tenth.
_DARK_YES, _DARK_NO = 24.0, 40.0  # gray level that 98 % of the cells do not reach
_BLURRED_YES, _BLURRED_NO = 0.3, 0.5  # share of the reference's sharpness
_MOVED_YES, _MOVED_NO = 0.4, 0.6  # correlation with the reference's edges


class Seen(Enum):
    """One look's answer about one sign."""

    YES = "yes"
    NO = "no"
    UNSURE = "unsure"


class Phase(Enum):
    """Where one sign stands."""

    ABSENT = "absent"
    SUSPECTED = "suspected"
    PRESENT = "present"
    GOING = "going"


# (phase, what a look says) -> phase. What lasts long enough goes on by LASTED.
TRANSITIONS: Mapping[tuple[Phase, Seen], Phase] = {
    (Phase.ABSENT, Seen.YES): Phase.SUSPECTED,
    (Phase.ABSENT, Seen.NO): Phase.ABSENT,
    (Phase.ABSENT, Seen.UNSURE): Phase.ABSENT,
    (Phase.SUSPECTED, Seen.YES): Phase.SUSPECTED,
    (Phase.SUSPECTED, Seen.NO): Phase.ABSENT,
    (Phase.SUSPECTED, Seen.UNSURE): Phase.ABSENT,
    (Phase.PRESENT, Seen.YES): Phase.PRESENT,
    (Phase.PRESENT, Seen.NO): Phase.GOING,
    (Phase.PRESENT, Seen.UNSURE): Phase.PRESENT,
    (Phase.GOING, Seen.YES): Phase.PRESENT,
    (Phase.GOING, Seen.NO): Phase.GOING,
    (Phase.GOING, Seen.UNSURE): Phase.PRESENT,
}
LASTED: Mapping[Phase, Phase] = {Phase.SUSPECTED: Phase.PRESENT, Phase.GOING: Phase.ABSENT}


@dataclass(frozen=True)
class Sign:
    """Something that can be wrong: how long it must last before it is said, and be gone before it is taken back (seconds)."""

    name: str
    after_s: float
    gone_s: float


# In the order in which they are said when several hold: an encoder makes every black picture the same, a frozen one may also have
# moved before.
SIGNS = (Sign("dark", 5.0, 3.0), Sign("frozen", 30.0, 2.0), Sign("blurred", 20.0, 10.0), Sign("moved", 30.0, 10.0))


@dataclass(frozen=True)
class Look:
    """What is measured on one picture.

    Args:
        thumb: (48, 64) uint8.
        level: gray level that 98 % of the visible cells do not reach.
        sharpness: variance of the Laplacian over that of the gray levels; light and contrast cancel out.
        checksum: of the sampled picture; a sensor's noise makes two pictures differ.
        size_wh: of the frame, pixels.
    """

    thumb: NDArray[np.uint8]
    level: float
    sharpness: float
    checksum: int
    size_wh: tuple[int, int]


def look_at(
    image_bgr: NDArray[np.uint8], visible: Callable[[int, int], NDArray[np.bool_] | None] = lambda _width, _height: None
) -> Look:
    """Measure a picture, some 0.2 ms whatever its size.

    Args:
        image_bgr: (H, W, 3) uint8.
        visible: (width, height) -> which pixels are under no privacy mask, None for all.
    Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (2000), for the variance of the Laplacian.
    """
    gray = sampled_gray(image_bgr)
    thumb = thumbnail_of(gray)
    shown = visible(gray.shape[1], gray.shape[0])
    cells = thumb.ravel()
    mask = None
    if shown is not None and shown.any():
        mask = shown.astype(np.uint8)
        inside = cv2.resize(mask, (thumb.shape[1], thumb.shape[0]), interpolation=cv2.INTER_NEAREST).ravel() > 0
        cells = cells[inside] if inside.any() else cells
    _, edges = cv2.meanStdDev(cv2.Laplacian(gray, cv2.CV_16S), mask=mask)
    _, contrast = cv2.meanStdDev(gray, mask=mask)
    place = max(0, int(0.98 * len(cells)) - 1)
    return Look(
        thumb,
        level=float(np.partition(cells, place)[place]),
        sharpness=float(edges[0, 0]) ** 2 / (float(contrast[0, 0]) ** 2 + 4.0),
        checksum=zlib.crc32(gray.tobytes()),
        size_wh=(image_bgr.shape[1], image_bgr.shape[0]),
    )


def is_dark(look: Look) -> bool:
    """Whether nothing can be seen on this one picture."""
    return look.level <= _DARK_YES


@dataclass
class _Track:
    """The phase of one sign, since when, and after how many looks."""

    phase: Phase = Phase.ABSENT
    since_s: float = 0.0
    looks: int = 0

    def step(self, sign: Sign, seen: Seen, at_s: float) -> None:
        following = TRANSITIONS[self.phase, seen]
        if following is not self.phase:
            self.phase, self.since_s, self.looks = following, at_s, 0
        self.looks += 1
        needed_s = {Phase.SUSPECTED: sign.after_s, Phase.GOING: sign.gone_s}.get(self.phase)
        if needed_s is not None and at_s - self.since_s >= needed_s and self.looks >= _LEAST_LOOKS:
            self.phase, self.since_s, self.looks = LASTED[self.phase], at_s, 0

    @property
    def is_said(self) -> bool:
        return self.phase in {Phase.PRESENT, Phase.GOING}


@dataclass
class _View:
    """What a camera showed when it was well: the empty scene, and how sharp it was."""

    scene: NDArray[np.float32]
    sharpness: float
    edges: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.edges = _edges(self.scene)

    def follow(self, scene: NDArray[np.float32], sharpness: float) -> None:
        """Go along with light and seasons. Sharpness falls in days and not in minutes: a lens gets dirty slowly."""
        self.scene = 0.8 * self.scene + 0.2 * scene
        self.edges = _edges(self.scene)
        self.sharpness += (0.1 if sharpness > self.sharpness else 0.0005) * (sharpness - self.sharpness)


class CameraWatch:
    """The state of one live camera, from one look after the other."""

    def __init__(self) -> None:
        self._last: Look | None = None
        self._learn_anew()

    @property
    def state(self) -> str:
        """ "ok", or the first of the signs that hold."""
        return next((sign.name for sign in SIGNS if self._tracks[sign.name].is_said), OK)

    def interrupted(self) -> None:
        """The camera was away: what was suspected begins again, and what is known of its view stays."""
        self._last = None
        self._recent.clear()
        for track in self._tracks.values():
            if not track.is_said:
                track.phase = Phase.ABSENT

    def observe(self, look: Look, at_s: float) -> str:
        """The state after one more look.

        Args:
            at_s: when the picture was taken, on a monotonic clock.
        """
        if self._last is not None and self._last.size_wh != look.size_wh:
            self._learn_anew()  # another resolution is another picture
        seen = self._see(look)
        for sign in SIGNS:
            self._tracks[sign.name].step(sign, seen[sign.name], at_s)
        self._last = look
        if self.state == "moved" and at_s - self._tracks["moved"].since_s >= _SETTLE_S:
            self._settle()
        elif self.state == OK and seen["dark"] is Seen.NO:
            self._learn(look, at_s, is_home=seen["moved"] is Seen.NO)
        return self.state

    def _learn_anew(self) -> None:
        self._tracks = {sign.name: _Track() for sign in SIGNS}
        self._views: list[_View] = []
        self._recent: deque[Look] = deque(maxlen=_RECENT_LOOKS)
        self._learning: list[Look] = []
        self._followed_s: float | None = None

    def _see(self, look: Look) -> dict[str, Seen]:
        same = self._last is not None and self._last.checksum == look.checksum
        seen = {
            "frozen": Seen.YES if same else Seen.NO,
            "dark": _between(look.level, _DARK_YES, _DARK_NO),
            "blurred": Seen.UNSURE,
            "moved": Seen.UNSURE,
        }
        if seen["dark"] is not Seen.NO:
            # In the dark nothing can be said about sharpness and place; and there is no such picture in the median either.
            return seen
        self._recent.append(look)
        if self._views and len(self._recent) == _RECENT_LOOKS:
            view, correlation = self._nearest_view(_edges(_median(self._recent)))
            seen["moved"] = _between(correlation, _MOVED_YES, _MOVED_NO)
            seen["blurred"] = _between(look.sharpness / max(view.sharpness, 1e-6), _BLURRED_YES, _BLURRED_NO)
        return seen

    def _nearest_view(self, edges: NDArray[np.float32]) -> tuple[_View, float]:
        found = [(view, _correlation(view.edges, edges)) for view in self._views]
        return max(found, key=lambda pair: pair[1])

    def _learn(self, look: Look, at_s: float, *, is_home: bool) -> None:
        if not self._views:
            self._learning.append(look)
            if len(self._learning) >= _LEARN_LOOKS:
                self._views.append(_view_of(self._learning))
                self._learning.clear()
            return
        if not is_home or (self._followed_s is not None and at_s - self._followed_s < _FOLLOW_EVERY_S):
            return
        self._followed_s = at_s
        scene = _median(self._recent)
        view, _ = self._nearest_view(_edges(scene))
        view.follow(scene, float(np.median([look.sharpness for look in self._recent])))

    def _settle(self) -> None:
        """The new view is one of this camera's views from now on."""
        self._views.append(_view_of(self._recent))
        del self._views[:-_MOST_VIEWS]
        self._tracks["moved"] = _Track()


def _view_of(looks: list[Look] | deque[Look]) -> _View:
    return _View(_median(looks), float(np.median([look.sharpness for look in looks])))


def _median(looks: list[Look] | deque[Look]) -> NDArray[np.float32]:
    return np.asarray(np.median(np.stack([look.thumb for look in looks]), axis=0), np.float32)


def _edges(scene: NDArray[np.float32]) -> NDArray[np.float32]:
    """Horizontal and vertical gradient, (2, 48, 64): what is left of a scene when its brightness is taken away."""
    return np.stack([cv2.Sobel(scene, cv2.CV_32F, 1, 0), cv2.Sobel(scene, cv2.CV_32F, 0, 1)]).astype(np.float32)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Cosine between two gradient fields, -1 to 1; 1 for the same edges at another contrast."""
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1.0))


def _between(value: float, yes: float, no: float) -> Seen:
    """YES at or below `yes`, NO at or above `no`, UNSURE between."""
    if value <= yes:
        return Seen.YES
    return Seen.NO if value >= no else Seen.UNSURE
