"""The durable queue of frames, the only store on the device that counts: one file a frame, and an index that can be rebuilt."""
