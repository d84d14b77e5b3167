"""The server's conversation with its devices, frames apart: what they say, what is wished of them, rollouts, campaigns.

The rules are pure (`rollout.py`, `campaign_shares.py`, `device_config.py`); `delivery.py` is the process.
"""
