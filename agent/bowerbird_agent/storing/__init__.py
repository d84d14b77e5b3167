"""Frames on their way to the disk: covered, encoded, stored by one thread; and what is kept beside them for who asks."""
