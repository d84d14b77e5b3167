"""`bowerbird demo`: the whole loop on one machine, with cameras and an annotator that are simulated and nothing else that is.

The broker, the server's processes, the agents, the training, the gate, the signatures and the transfer are the ones of a real
site. `world.py` is what the cameras look at, `run.py` starts everything and waits, `control.py` trains on random picks for
comparison, `facts.py` gathers the figures and `report.py` shows them.
"""
