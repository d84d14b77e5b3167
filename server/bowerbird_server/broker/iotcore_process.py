"""Runs the broker of the `iotcore` wheel in this process: `python -m bowerbird_server.broker.iotcore_process CONFIG PID_FILE`.

In: a rumqttd configuration that `broker/embedded.py` wrote. Out: a broker until a signal ends it. It exists because the wheel's own
command logs every packet and writes no process id.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Run until killed; 2 for wrong arguments."""
    if len(argv) != 2:
        sys.stderr.write("usage: python -m bowerbird_server.broker.iotcore_process CONFIG PID_FILE\n")
        return 2
    import iotcore

    logging.basicConfig(level=logging.WARNING)
    # rumqttd reports the routing of each packet as an error.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    broker = iotcore.Broker(config_path=argv[0])
    Path(argv[1]).write_text(str(os.getpid()))
    broker.run_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
