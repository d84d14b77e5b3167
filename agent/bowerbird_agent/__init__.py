"""The device: camera to detections to the frames worth a label, a durable spool, the link, and model updates."""
