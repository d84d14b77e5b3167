"""The random audit: which frames are taken without looking, and with what probability.

In: a key, and for each frame of a camera the probability with which it shall be taken. Out: yes or no, and the exact
probability. Pure and repeatable: a keyed hash takes the place of a random generator. It never sees a picture.

Sampling is systematic: the probabilities are added up, and in each stretch in which they add up to one exactly one frame is
taken, at a hashed place. Every frame keeps its own probability, the number taken hardly varies, and the frames are
spread over time, which makes them the strong baseline that a score has to beat.
"""

from __future__ import annotations

import hashlib


def keyed_unit(key: str, *parts: object) -> float:
    """A number in [0, 1) that looks random and is the same for equal key and parts."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=7, key=hashlib.blake2b(key.encode(), digest_size=32).digest()).digest()
    return int.from_bytes(digest, "big") / float(1 << 56)


class AuditDraw:
    """The draw for one camera during one window.

    Source: Madow, "On the Theory of Systematic Sampling, II" (1949): systematic sampling with unequal probabilities; a place drawn anew
        in each stretch is ours.

    Args:
        key: secret or not, but another for each device and window.
        camera: the camera's name.
    """

    def __init__(self, key: str, camera: str) -> None:
        self._key, self._camera = key, camera
        self._summed = 0.0
        self._stretch = 0
        self._place = keyed_unit(key, camera, 0)

    def take(self, probability: float) -> tuple[bool, float]:
        """Decide on the camera's next frame.

        Args:
            probability: wanted for this frame, clipped to [0, 1].
        Returns:
            Whether it is taken, and the exact probability that it is (a little below the wanted one in the rare frame that lies
            across two stretches).
        """
        wanted = min(1.0, max(0.0, probability))
        if wanted == 0.0:
            return False, 0.0
        begin = self._summed - self._stretch
        end = begin + wanted
        taken = begin <= self._place < end
        exact = min(end, 1.0) - begin
        if end >= 1.0:
            self._stretch += 1
            self._place = keyed_unit(self._key, self._camera, self._stretch)
            over = end - 1.0
            taken = taken or self._place < over
            exact = 1.0 - (1.0 - exact) * (1.0 - over)
        self._summed += wanted
        return taken, exact
