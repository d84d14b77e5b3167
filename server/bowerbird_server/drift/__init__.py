"""Whether what cameras show has changed, and how good the model is in the field: hours, verdicts, the random audit. Mostly pure.

The rows are `catalogue/drift_rows.py`'s and `catalogue/audited.py`'s.
"""
