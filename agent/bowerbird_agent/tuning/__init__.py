"""Which runtime, file and settings a model runs with on this machine: rules, measurements in child processes, kept choices."""
