"""Frames from the broker into blobs and catalogue, each acknowledged only when it is safe.

`ingest.py` is the process; what a frame must be (`arrival.py`) and parts of frames (`chunks.py`) stand beside it.
"""
