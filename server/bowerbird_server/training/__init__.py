"""From labelled frames to a judged challenger: data set versions, the training process, export, evaluation, the gate.

Ultralytics and torch are imported in the child process only (`train_child.py`, `export_child.py`).
"""
