"""Thumbnails that frames were offered with, so that a frame which looks like one that is here need not be sent.

In: thumbnails and the frames they belong to. Out: those of a site's frames that are here. Bounded: the newest few thousand. They can
be thrown away at any time; then a few frames are sent that need not have been.
"""

from __future__ import annotations

from bowerbird_server.catalogue.core import Catalogue, utc_now

KEPT = 2000


def keep(cat: Catalogue, frame: str, site: str, luma: bytes) -> None:
    """Keep the thumbnail of a frame that was offered; it counts once the frame is here."""
    with cat.transaction():
        cat.insert("thumbnail", {"frame": frame, "site": site, "luma": luma, "at": utc_now()}, ignore=True)
        cat.execute("DELETE FROM thumbnail WHERE rowid <= (SELECT max(rowid) FROM thumbnail) - ?", KEPT)


def of_site(cat: Catalogue, site: str) -> list[tuple[str, bytes]]:
    """(frame, thumbnail) of the site's frames that are here and not deleted."""
    rows = cat.rows(
        "SELECT thumbnail.frame, luma FROM thumbnail JOIN frame ON frame.id = thumbnail.frame "
        "WHERE thumbnail.site = ? AND frame.state != 'deleted'",
        site,
    )
    return [(row["frame"], row["luma"]) for row in rows]
