"""The catalogue: one SQLite file that says what there is and in which state. Only this package writes SQL.

In: values from ingest, labelling, training and rollout. Out: rows as dictionaries. `core.py` opens the file and runs
transactions; each other module holds the functions of one subject and takes the open `Catalogue` as its first argument. It is an
index: pictures, models and manifests are blobs.
"""

from __future__ import annotations

from bowerbird_server.catalogue.core import Catalogue, Row, new_id, utc_now, utc_text

__all__ = ["Catalogue", "Row", "new_id", "utc_now", "utc_text"]
