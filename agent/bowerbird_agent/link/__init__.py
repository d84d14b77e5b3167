"""What passes between the device and its broker: the connection, uploads as a machine without I/O, and messages that must arrive.

How much may pass is `budget/`'s, what waits to be sent `spool/`'s.
"""
