"""From a source to frames: cameras, films and folders, one thread each, and the hand-over to the one inference thread.

It looks at no content but for masks (`framing.py`) and the health of a camera (`camera_health.py`).
"""
