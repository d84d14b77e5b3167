"""What crosses the network between a device and its server: topics, messages, their bytes, and how they can be wrong."""
