"""How many frames a window may give, and what share of them is left to chance, from the policy, the server's wish and boosts.

In: a policy, the wish, cameras that explore more for a while. Out: numbers of frames and probabilities. It is told what was sent and
knows no frame; bytes are `pace.py`'s business.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bowerbird_agent.selection.policy import Policy

# Frames that a window is taken to have a budget for while neither the policy nor the server says.
USUAL_BUDGET_FRAMES = 16


class Allowance:
    """One selector's.

    Args:
        policy: the numbers.
        cameras: how many the device has, at least 1.
        frame_rate: frames per second of one camera, for windows in seconds; None when unknown.
    """

    def __init__(self, policy: Policy, *, cameras: int, frame_rate: float | None) -> None:
        self._policy, self._cameras, self._frame_rate = policy, cameras, frame_rate
        self.frames_left: int | None = None
        self._frames_expected: float | None = None
        self._boosts: Mapping[str, float] = {}
        self._audit_wanted: dict[bool, float] = {}  # without a model or with one -> the audit's probability

    def expect(self, frames_left: int | None, frames_a_window: float | None) -> None:
        """As `Selector.expect`."""
        self.frames_left = None if frames_left is None else max(0, frames_left)
        self._frames_expected = frames_a_window
        self._audit_wanted.clear()

    def left_now(self, frames_left: int | None) -> None:
        """What the server still wants; what the byte budget allows stays as it was said."""
        self.expect(frames_left, self._frames_expected)

    def sent(self, frames: int) -> None:
        """So many were chosen for good."""
        self.left_now(None if self.frames_left is None else self.frames_left - frames)

    @property
    def boosts(self) -> Mapping[str, float]:
        """Camera -> by how much its audit's share, and its part of the frames of a window, are multiplied; above 1."""
        return self._boosts

    @boosts.setter
    def boosts(self, factors: Mapping[str, float]) -> None:
        self._boosts = dict(factors)
        self._audit_wanted.clear()

    @property
    def budget_frames(self) -> float:
        """Frames of all cameras that a window is expected to give."""
        caps = [cap for cap in (self.frames_left, self._policy.frames_per_window, self._frames_expected) if cap is not None]
        return min(caps) if caps else USUAL_BUDGET_FRAMES

    @property
    def frames_a_window(self) -> float:
        """Frames that one camera shows in a window."""
        frames = float(self._policy.window_frames)
        if self._policy.window_s is not None and self._frame_rate:
            frames = max(1.0, min(frames, self._policy.window_s * self._frame_rate))
        return frames

    @property
    def stretch(self) -> float:
        """Frames of one camera for each that may be sent."""
        return self.frames_a_window * self._cameras / max(1e-9, self.budget_frames)

    def capacity(self) -> int:
        """Candidates worth writing: enough to choose among, few enough for the disk."""
        more = max(self._boosts.values(), default=1.0)
        return min(self._policy.max_candidates, math.ceil(max(self._policy.shortlist, 2) * self.budget_frames * more) + 8)

    def limit(self, candidates: int) -> int:
        """The most frames that a window may send. Without a cap every candidate may go; the audit's share is then of what the window
        was expected to give."""
        caps = [cap for cap in (self.frames_left, self._with_boosts(self._policy.frames_per_window)) if cap is not None]
        return min(caps) if caps else max(candidates, USUAL_BUDGET_FRAMES)

    def audit_share(self, cold: bool) -> float:
        """The audit's share of a whole window, in which some cameras may explore more and have more frames."""
        usual = self._epsilon(cold)
        if not self._boosts:
            return usual
        factors = list(self._boosts.values())
        others = max(0, self._cameras - len(factors))
        more = sum(min(1.0, usual * factor) * factor for factor in factors)
        return min(1.0, (usual * others + more) / (others + sum(factors)))

    def audit_probability(self, camera: str, *, cold: bool) -> float:
        """That chance takes this camera's next frame; above 1 where there are fewer frames than it is to take.

        Args:
            cold: without detections.
        """
        wanted = self._audit_wanted.get(cold)
        if wanted is None:
            wanted = self._epsilon(cold) * self.budget_frames / (self.frames_a_window * self._cameras)
            self._audit_wanted[cold] = wanted
        return wanted * self._more_audit(camera, cold=cold) if self._boosts else wanted

    def _epsilon(self, cold: bool) -> float:
        return max(self._policy.epsilon, self._policy.cold_epsilon) if cold else self._policy.epsilon

    def _with_boosts(self, frames: int | None) -> int | None:
        """The frames of a window, with what boosted cameras get on top of their part; None for no limit."""
        if frames is None or not self._boosts:
            return frames
        more = sum(factor - 1.0 for factor in self._boosts.values()) / max(self._cameras, len(self._boosts))
        return round(frames * (1.0 + more))

    def _more_audit(self, camera: str, *, cold: bool) -> float:
        """By how much a camera's boost raises its chance to be explored: its share of the budget, and its budget."""
        factor, usual = self._boosts.get(camera, 1.0), self._epsilon(cold)
        if factor == 1.0 or not usual:
            return 1.0
        caps = [cap for cap in (self.frames_left, self._frames_expected) if cap is not None]
        of_window = self._policy.frames_per_window
        budget = 1.0
        if of_window:
            budget = min([*caps, factor * of_window]) / max(1e-9, min([*caps, of_window]))
        return min(1.0, usual * factor) / usual * budget
