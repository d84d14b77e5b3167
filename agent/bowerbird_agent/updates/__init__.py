"""Updates of the model and of the agent itself, as one machine: fetched, verified, tried, and taken back when they are bad.

The table is `updater.py`; `runner.py` does files, builds and processes.
"""
