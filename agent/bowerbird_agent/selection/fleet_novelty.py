"""Novelty as the fleet sees it: what other devices have sent often enough is not new here either.

In: the sketch in the server's wish, the model that runs. Out: a distance that the selector takes beside that of its own bank. Pure. A
sketch of another model, or one that cannot be read, counts for nothing: the device then goes by what it has kept itself.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bowerbird_wire.errors import MessageError
from bowerbird_wire.fleet_sketch import FleetSketch, decode, distance, model_key, projection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)


class FleetNovelty:
    """How far a frame is from what the fleet has enough of. Not changed once made.

    Args:
        sketch: of the model that runs.
    """

    def __init__(self, sketch: FleetSketch) -> None:
        self._sketch = sketch
        self._projection = projection(sketch.model, sketch.embedding_size)

    @property
    def kinds(self) -> int:
        """Groups of frames that look alike, of which there is enough."""
        return len(self._sketch.centres)

    def distance(self, embedding: NDArray[np.float32]) -> float:
        """In [0, 1]; 1 for an embedding of another length, about which nothing is known.

        Args:
            embedding: (d,) of length 1.
        """
        if len(embedding) != self._sketch.embedding_size:
            return 1.0
        return distance(embedding @ self._projection, self._sketch)


def fleet_novelty(payload: bytes, model_digest: str) -> FleetNovelty | None:
    """What a wish says about the model that runs; None when it says nothing."""
    if not payload:
        return None
    try:
        sketch = decode(payload)
    except MessageError as error:
        logger.warning("what the fleet has enough of is not understood (%s); going by what was kept here", error)
        return None
    return FleetNovelty(sketch) if sketch.model == model_key(model_digest) else None
