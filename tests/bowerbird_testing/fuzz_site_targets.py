"""What a server reads that is neither message nor picture: backups, logs of deletions, records, wheels, a provider's answers.

In: bytes. Out: as in `fuzz_targets.py`. It also reads what a device says of itself as pages and metrics do.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from bowerbird_testing.fuzz_targets import Target
from bowerbird_wire.errors import WireError

WHEEL = "a-1.0-py3-none-any.whl"


def site_targets() -> dict[str, Target]:
    """By name, which is that of its folder in the corpus."""
    from bowerbird_models.manifest import PackageError
    from bowerbird_server.errors import BadInput, EnvironmentFault, NotFound

    scratch = Path(tempfile.mkdtemp(prefix="bowerbird-fuzz-"))

    def file_of(data: bytes, name: str) -> Path:
        path = scratch / name
        path.write_bytes(data)
        return path

    def headers(data: bytes) -> object:
        from bowerbird_server.catalogue.records import decode_headers

        return decode_headers(data)

    def fact(data: bytes) -> object:
        from bowerbird_server.catalogue.records import decode_fact

        return decode_fact(data)

    def deletions(data: bytes) -> object:
        from bowerbird_server.catalogue.erasures import Criteria
        from bowerbird_server.identity.states import State
        from bowerbird_server.privacy.deletion_log import DeletionLog

        entries = DeletionLog(file_of(data, "deletions.jsonl")).read()
        for entry in entries:  # what `erase.replay` takes without asking
            if entry["kind"] == "erasure":
                assert all(isinstance(frame, str) for frame in Criteria.of(entry).frames)
            elif entry["kind"] == "device":
                State(entry["state"])
            else:
                assert {"frame", "blob", "at", "actor", "why", "erasure"} <= entry.keys()
        return entries

    def backup(data: bytes) -> object:
        from bowerbird_server.backup import read_manifest

        manifest = read_manifest(file_of(data, "backup.json"))
        for name in manifest["files"]:
            assert (scratch / name).resolve().is_relative_to(scratch.resolve())
        return manifest

    def wheel(data: bytes) -> object:
        from bowerbird_models.wheels import check_wheel

        return check_wheel(file_of(data, WHEEL))

    def said(data: bytes) -> object:
        """A health message as the pages, the metrics and the loop read it."""
        from bowerbird_server.catalogue.fleet import _counters
        from bowerbird_server.web.spending import spent
        from bowerbird_wire.codec import decode
        from bowerbird_wire.messages import Health
        from bowerbird_wire.telemetry import read

        extra = json.loads(json.dumps(_counters(decode(Health, data))))["extra"]
        told = read(extra.get("tm"))
        assert all(float(count) >= 0 for count in (*told.latency.values(), *told.scores.values()))
        extra.get("window", {}).get("round_closed")
        return spent(extra, lambda count: f"{float(count):.0f}")

    def vouched(data: bytes) -> object:
        """The token's and the keys' JSON, as a provider would answer; nothing that is made up vouches for anybody."""
        from bowerbird_server.access.oidc import Attempt, Provider
        from bowerbird_server.config import OidcConfig

        token, _, keys = data.partition(b"\n")
        config = OidcConfig(
            issuer="https://id.example", client_id="bowerbird", redirect_url="https://b.example/login/oidc/callback"
        )
        provider = Provider(config, "secret")
        try:
            answer, known = json.loads(token), json.loads(keys)
        except (ValueError, RecursionError) as error:
            raise BadInput("no JSON") from error
        if not isinstance(answer, dict):
            raise BadInput("Authlib takes a table only")
        name = provider._name(answer, known, Attempt("nonce-of-the-corpus", "v", "/", 0.0), 1_800_000_000.0)
        assert name == "ada@example.org"
        return name

    return {
        "record-headers": Target(headers, (WireError,)),
        "record-fact": Target(fact, ()),
        "deletions": Target(deletions, (BadInput,)),
        "backup-manifest": Target(backup, (BadInput, NotFound, EnvironmentFault)),
        "wheel": Target(wheel, (PackageError,)),
        "health-said": Target(said, (WireError,)),
        "oidc-answer": Target(vouched, (BadInput,)),
    }
