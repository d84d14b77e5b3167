"""What a device knows and tells of itself: counters, hours, heartbeats, metrics, and what systemd hears.

The numbers come from the parts; here they are put together, kept over restarts and sent.
"""
