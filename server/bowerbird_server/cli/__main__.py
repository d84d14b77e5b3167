"""`python -m bowerbird_server.cli`: how the supervisor starts its children with its own interpreter."""

from __future__ import annotations

from bowerbird_server.cli.app import main

main()
