"""The real selection without a device: a film, a folder of pictures, or one frame, and what would have been done with it."""
