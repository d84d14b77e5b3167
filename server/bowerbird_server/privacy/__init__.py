"""Frames that are forgotten: by request, by age, and what is written down of it.

Rows are `catalogue/erasures.py`'s; devices carry their part out by themselves (`fleet/delivery.py` hears of it).
"""
