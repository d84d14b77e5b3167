"""How many bytes may go over the uplink, and when: hard caps, spending by kind, tariffs. Pure but for the look at clock and routes.

What the bytes are spent on is chosen in `selection/`; what is sent when is `link/`'s.
"""
