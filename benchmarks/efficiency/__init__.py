"""The parts of `label_efficiency.py`: worlds, arms, runs, statistics, report."""
