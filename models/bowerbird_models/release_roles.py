"""The delegated roles of the update repository: who signs what a device may run. Words only, for those who verify nothing themselves.

In: nothing. Out: names.
"""

from __future__ import annotations

MODELS_ROLE, AGENTS_ROLE = "models", "agents"
