"""The configuration that may be changed while the agent runs: by the server, with a trial and a way back, or by SIGHUP."""
