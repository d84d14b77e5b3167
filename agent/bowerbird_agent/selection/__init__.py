"""Which frames are worth a label: gates, scores, novelty, windows, policies, and why it was so. Pure but for the decision log.

Nothing here waits for disk or network; the inference thread owns all of it.
"""
