"""The one thread that owns the model: frames in, detections and judgements out, at a rate that the machine can bear.

What a model is lies in `bowerbird_models`; what its detections are worth in `selection/`.
"""
