"""Labels: the rules a label obeys, the queue it comes from, files of other tools, and the simulated annotator.

The human's tool is the review page in `web/`. That page, the simulated annotator and file imports all end in
`backend.submit_label`.
"""
