"""What devices update to: models and releases of the agent, and the signed repository that they are read from.

Which device is offered what, and when, is `fleet/rollout.py`'s.
"""
