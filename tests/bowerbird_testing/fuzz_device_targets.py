"""What a device makes of the messages and files that it takes, beyond reading them: the second half of the table in `fuzz_targets.py`.

In: bytes. Out: as there. The code is that of the agent, without its threads: a wish is laid over a configuration, a sketch becomes a
distance, a job is held against the director's key, blocks are taken by a transfer, a self-test's last words become a verdict.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from bowerbird_testing.fuzz_targets import Target
from bowerbird_wire.errors import WireError

DEVICE, NOW_MS = "cam-01", 1_800_000_000_000
AGENT_TOML = """
[device]
id = "cam-01"
site = "demo"
[broker]
host = "127.0.0.1"
[budget]
bytes_per_day = 1000000
quiet_hours = ["22:00-06:00"]
[[cameras]]
name = "gate"
source = "synthetic:?seed=1&fps=5"
masks = [[[0.0, 0.0], [0.5, 0.0], [0.5, 0.5]]]
"""


def device_targets() -> dict[str, Target]:
    """By name, which is that of its folder in the corpus."""
    from bowerbird_models.errors import ModelError
    from bowerbird_wire.codec import decode

    def wish(data: bytes) -> object:
        """As `control.py`, `remote/runner.py` and `inference.py` do it."""
        from bowerbird_agent.config import parse_config, parse_wished
        from bowerbird_agent.errors import ConfigError
        from bowerbird_agent.selection.boost import BoostWatch
        from bowerbird_agent.selection.calibration_book import CalibrationBook
        from bowerbird_agent.selection.campaign import Lifetime, Term
        from bowerbird_agent.selection.fleet_novelty import fleet_novelty
        from bowerbird_wire.messages import Desired

        desired = decode(Desired, data)
        boost = BoostWatch()
        boost.take(desired.boost)
        boost.step(0.0, NOW_MS, clock_ok=True, allowed=True)
        for wished in desired.campaigns:
            Lifetime(wished.until_ms).runs(0.0, NOW_MS, clock_ok=True)
            with suppress(ValueError):  # its faults are told to the server
                Term.of(wished)
        for one in desired.erase:
            one.covers("0" * 64, "gate", NOW_MS)
        fleet_novelty(desired.enough, "ab" * 32)
        book = CalibrationBook()
        book.take(desired.calibration, "ab" * 32)
        book.of("ab" * 32)
        own = parse_config(AGENT_TOML, Path("/tmp"))
        try:
            config, _ = parse_wished(AGENT_TOML, Path("/tmp"), desired.config)
        except ConfigError:
            return None
        # Money and privacy: whatever was wished, the file's own word is a ceiling.
        assert config.budget.bytes_per_day is not None
        assert config.budget.bytes_per_day <= 1_000_000
        assert set(own.budget.quiet_hours) <= set(config.budget.quiet_hours)
        assert set(own.cameras[0].masks) <= set(config.cameras[0].masks)
        return config

    def sketch(data: bytes) -> object:
        import numpy as np

        from bowerbird_agent.selection.fleet_novelty import FleetNovelty
        from bowerbird_wire.fleet_sketch import decode as read_sketch

        found = read_sketch(data)
        one = np.zeros(found.embedding_size, np.float32)
        one[0] = 1.0
        assert 0.0 <= FleetNovelty(found).distance(one) <= 1.0
        return found

    def calibration(data: bytes) -> object:
        """Whatever table it is, a higher score is never worth less, and no doubt leaves its bounds."""
        from bowerbird_models.score_calibration import ScoreCalibration
        from bowerbird_wire.calibration_table import decode as read_table

        found = read_table(data)
        made, scores = ScoreCalibration(found), [number / 40 for number in range(41)]
        for class_id in (*found.classes, 1 << 16):
            p = made.probabilities(scores, [class_id] * len(scores))
            assert all(low <= high + 1e-9 for low, high in pairwise(p))
            assert 0.0 <= p[0] <= p[-1] <= 1.0
            assert 1.0 <= made.weights([class_id])[0] <= 1.2 + 1e-9
        return found

    def signed_job(data: bytes) -> object:
        from bowerbird_models.signing import verify_job
        from bowerbird_wire.messages import Job

        job = decode(Job, data)
        key = director().public_key
        verify_job(job, {key.keyid: key}, device=DEVICE, now_ms=NOW_MS)
        return job

    def transfer(data: bytes) -> object:
        """Messages one behind the other, each with its length; whatever comes, no block lies outside of the file."""
        from bowerbird_agent.updates.fetcher import Transfer
        from bowerbird_wire.messages import Block

        taking = Transfer("metadata/timestamp.json", 100_000)
        while data:
            size = int.from_bytes(data[:2], "big")
            taking.wanted(0.0)
            taking.take(decode(Block, data[2 : 2 + size]), 0.0)
            data = data[2 + size :]
        assert all(0 <= index < (taking.block_count or 1) for index in taking.have)
        return taking.is_done

    def last_words(data: bytes) -> object:
        from bowerbird_agent.updates.selftest import verdict_of

        return verdict_of(data, 0)

    def ground_truth(data: bytes) -> object:
        from bowerbird_models.mot import read_mot

        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            found = read_mot(Path(file.name), (640, 480))
        assert all(0 <= box[0] < box[2] <= 640 for boxes in found.values() for _, box in boxes)
        return found

    from tuf.api.exceptions import DownloadError

    return {
        "wish": Target(wish, (WireError,)),
        "fleet-sketch": Target(sketch, (WireError,)),
        "calibration-table": Target(calibration, (WireError,)),
        "signed-job": Target(signed_job, (WireError, ModelError)),
        "transfer": Target(transfer, (WireError, DownloadError)),
        "selftest-output": Target(last_words, ()),
        "mot": Target(ground_truth, (ValueError,)),
    }


def director() -> CryptoSigner:
    """One whose key is no secret."""
    return CryptoSigner(Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))
