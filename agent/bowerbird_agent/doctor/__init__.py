"""`bowerbird-agent doctor`: what is missing on this machine, and what stands between it and its broker. It changes nothing."""
