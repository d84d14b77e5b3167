"""Who this device is: its key and certificate, how they are claimed, renewed, and used to sign reports.

Which CA and which certificate a connection uses is `link/broker_tls.py`'s.
"""
