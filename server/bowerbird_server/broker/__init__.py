"""The MQTT broker between server and devices: an embedded one or the operator's own, its rules, certificates and sessions.

What is said over it is not its business: frames are `ingest/`'s, everything else `fleet/`'s.
"""
