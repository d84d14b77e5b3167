"""Which model packages carry a picture of the site as golden input, so that an erasure can say so.

In: digests of images. Out: digests of models. A package's golden pictures are small copies (320 pixels) of held-out frames; they are
signed, on the devices, and cannot be taken out of a package without making another model of it. This finds them and changes nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bowerbird_models.golden import LONG_SIDE_PX, decode_golden
from bowerbird_server.errors import NotFound
from bowerbird_server.site import Site

logger = logging.getLogger(__name__)


def packages_showing(site: Site, images: Sequence[str]) -> list[str]:
    """Models whose package carries a small copy of one of these images.

    Args:
        images: blobs; those that are gone are passed over.
    """
    packages = [path for path in sorted(site.folder.packages.glob("*")) if path.is_dir()]
    if not packages or not images:
        return []
    try:
        held = {path.name: _fingerprints(path) for path in packages}
    except ImportError:
        logger.warning("without OpenCV (bowerbird[server,opencv]) nobody can tell which packages show a picture: all are named")
        return [path.name for path in packages]
    wanted = {print_ for blob in dict.fromkeys(images) if (print_ := _fingerprint_of(site, blob))}
    return [digest for digest, prints in held.items() if prints & wanted]


def _fingerprints(package: Path) -> set[str]:
    found: set[str] = set()
    for path in package.rglob("golden*.npz"):
        try:
            found |= {_digest(case.image_bgr) for case in decode_golden(path.read_bytes())}
        except (OSError, ValueError) as error:
            logger.warning("the golden pictures of %s cannot be read: %s", package.name, error)
    return found


def _fingerprint_of(site: Site, blob: str) -> str:
    """Of the image as it would travel in a package."""
    import cv2

    try:
        image = cv2.imdecode(np.frombuffer(site.blobs.read(blob), np.uint8), cv2.IMREAD_COLOR)
    except (NotFound, cv2.error):
        return ""
    if image is None:
        return ""
    scale = LONG_SIDE_PX / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return _digest(np.asarray(image, np.uint8))


def _digest(image_bgr: NDArray[np.uint8]) -> str:
    return hashlib.sha256(str(image_bgr.shape).encode() + np.ascontiguousarray(image_bgr).tobytes()).hexdigest()
