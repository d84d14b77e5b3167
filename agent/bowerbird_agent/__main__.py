"""`python -m bowerbird_agent` is `bowerbird-agent`."""

import sys

from bowerbird_agent.cli import main

sys.exit(main())
