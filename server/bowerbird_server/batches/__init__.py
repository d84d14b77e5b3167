"""Which received frames go to people next, and whether choosing pays: looks, choice, roles, costs, yields.

Most of it is pure; the rows are the catalogue's (`catalogue/batches.py`, `catalogue/judged.py`), the queue is `labelling/`'s.
"""
