"""Deliberate weakenings of the code, each with the attack that must then succeed: a test that passes without a check checks nothing.

In: this table. Out: in processes of their own, modules whose source was changed while it was imported; nothing on the disk changes,
and the product has no switch for any of it. `python -m bowerbird_testing.weakenings [NAME...]` in `tests/` prints a line of JSON for
each. An edit whose text is not in the module exactly once is an error: the code has moved on and the table must follow.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120
_PRELOADED = (
    *(
        "cryptography.x509",
        "fastapi.testclient",
        "hypothesis",
        "numpy",
        "onnxruntime",
        "paho.mqtt.client",
        "pytest",
        "sqlite_utils",
    ),
    *("tuf.ngclient", "typer", "uvicorn"),
)
Edits = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Weakening:
    """One check that is left out.

    Args:
        name: what is missing.
        module: where.
        edits: text and what stands in its place.
        caught_by: the tests that must fail then, as node ids without parameters.
        slow: whether these take seconds each; a broker does.
        also: edits of further modules, where two checks stand one behind the other.
    """

    name: str
    module: str
    edits: Edits
    caught_by: Sequence[str]
    slow: bool = field(default=False)
    also: Mapping[str, Edits] = field(default_factory=dict)

    def all_edits(self) -> Mapping[str, Edits]:
        """By module."""
        return {self.module: self.edits, **self.also}


_CLAIMS, _ACCESS, _WEB = "integration/test_claims.py::", "integration/test_access.py::", "integration/test_web_api.py::"
_DELIVERY, _UPDATE, _ENROL = (
    "security/test_broker_delivery.py::",
    "integration/test_update.py::",
    "integration/test_enrolment.py::",
)

_REPORTS = "attacks/test_hostile_reports.py::"

WEAKENINGS: tuple[Weakening, ...] = (
    # -- certificates and claims
    Weakening(
        "no check of the name in a request",
        "bowerbird_server.identity.requests",
        [("    _check_names(subject)\n", "")],
        [f"{_CLAIMS}test_a_request_that_wants_too_much_is_refused_by_name_and_the_token_stays_good"],
    ),
    Weakening(
        "no check of the extensions in a request: CA:TRUE, foreign names",
        "bowerbird_server.identity.requests",
        [("    _check_extensions(extensions)\n", "")],
        [f"{_CLAIMS}test_a_request_that_wants_too_much_is_refused_by_name_and_the_token_stays_good"],
    ),
    Weakening(
        "a request need not be signed by its key",
        "bowerbird_server.identity.requests",
        [("    if not signed:\n", "    if False:\n")],
        [f"{_CLAIMS}test_a_request_whose_signature_is_another_keys_is_refused"],
    ),
    Weakening(
        "reserved names are nobody's",
        "bowerbird_server.identity.authority",
        [("    folded = name.casefold()\n", "    return False\n")],
        ["unit/test_authority.py::test_a_device_never_gets_a_reserved_name"],
    ),
    Weakening(
        "a token is good for many keys",
        "bowerbird_server.identity.claims",
        [('if found["state"] == "claimed" and found["key_sha256"] != request.fingerprint:', "if False:")],
        [f"{_CLAIMS}test_a_second_use_with_another_key_is_refused_and_raises_an_alarm"],
    ),
    Weakening(
        "a token never expires",
        "bowerbird_server.identity.claims",
        [('(found["state"] == "open" and rows.time_of(found["expires_at"]) <= now)', "False")],
        [f"{_CLAIMS}test_a_token_is_good_to_its_last_second_and_late_by_none"],
    ),
    Weakening(
        "tokens are kept as they are",
        "bowerbird_server.identity.tokens",
        [('    return hashlib.sha256(token.encode(errors="replace")).hexdigest()', "    return token")],
        [f"{_CLAIMS}test_tokens_are_nowhere_in_the_catalogue"],
    ),
    Weakening(
        "guessing tokens is not slowed down",
        "bowerbird_server.identity.listener",
        [("and self._refused.has_room(address, now_s)", "and True")],
        [f"{_ENROL}test_guessing_is_slowed_down"],
    ),
    Weakening(
        "two boards may say one serial number",
        "bowerbird_server.identity.claims",
        [("        if twin is not None:\n", "        if False:\n")],
        [f"{_CLAIMS}test_two_devices_with_one_serial_number_raise_an_alarm_and_the_second_waits"],
    ),
    Weakening(
        "a renewal needs no proof of the old key",
        "bowerbird_server.identity.claims",
        [("            check_proof(leaf, device, generation, request, asked.proof)\n", "")],
        [f"{_CLAIMS}test_a_renewal_without_proof_of_the_old_key_is_refused"],
    ),
    Weakening(
        "certificates of any authority renew",
        "bowerbird_server.identity.claims",
        [(" or not self._issuer.verifies(leaf)", "")],
        [f"{_CLAIMS}test_a_certificate_of_another_authority_renews_nothing"],
    ),
    Weakening(
        "clones are not noticed",
        "bowerbird_server.identity.claims",
        [("        if suspicion:\n", "        if False:\n")],
        [f"{_CLAIMS}test_an_old_generation_that_renews_after_its_successor_was_used_is_a_clone"],
    ),
    Weakening(
        "private keys that others can read are used",
        "bowerbird_server.identity.authority",
        [("others = path.stat().st_mode & 0o077", "others = 0")],
        ["unit/test_authority.py::test_keys_that_others_can_read_are_refused"],
    ),
    # -- the board
    Weakening(
        "the pin of a bundle is not checked",
        "bowerbird_agent.identity.enrolment",
        [("    if pin_of(bundle.ca) != bundle.pin:\n", "    if False:\n")],
        [f"{_ENROL}test_a_bundle_whose_ca_was_swapped_is_noticed_by_its_pin"],
    ),
    Weakening(
        "the pin of a text is not checked",
        "bowerbird_agent.identity.claim_client",
        [("    if pin_of(ca_pem) != pin:\n", "    if False:\n")],
        [
            "integration/test_enrol_by_text.py::test_a_pin_that_is_another_sites_is_refused_before_anything_is_told",
            "attacks/test_man_in_the_middle.py::test_a_board_that_knows_the_pin_only_tells_nobody_its_token_whose_ca_is_another",
        ],
    ),
    Weakening(
        "a board believes any server",
        "bowerbird_agent.identity.claim_client",
        [
            (
                "    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)\n",
                "    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)\n"
                "    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE\n",
            )
        ],
        [f"{_ENROL}test_a_server_of_another_ca_gets_nothing"],
    ),
    Weakening(
        "a board believes whatever a public authority signed",
        "bowerbird_agent.identity.claim_client",
        [
            (
                "    context.minimum_version = ssl.TLSVersion.TLSv1_2\n",
                "    context.minimum_version = ssl.TLSVersion.TLSv1_2\n    context.set_default_verify_paths()\n",
            )
        ],
        ["attacks/test_man_in_the_middle.py::test_a_certificate_of_an_authority_that_the_machine_trusts_gets_no_token"],
    ),
    # -- the broker
    Weakening(
        "no access rules at the broker",
        "bowerbird_server.broker.config",
        [('        f"acl_file {files.rules}",\n', "")],
        [f"{_DELIVERY}test_device_reads_what_is_for_another", f"{_DELIVERY}test_device_writes_as_another"],
        slow=True,
    ),
    Weakening(
        "a device may report for every other",
        "bowerbird_server.broker.rules",
        [
            (
                '        f"topic read {CreditTopic(site)}",\n',
                '        f"topic read {CreditTopic(site)}",\n        f"topic write bowerbird/v1/{site}/up/+/report",\n',
            )
        ],
        [f"{_DELIVERY}test_device_writes_as_another"],
        slow=True,
    ),
    Weakening(
        "a device may read what its site is told",
        "bowerbird_server.broker.rules",
        [('f"topic read {kind(site, device)}" for kind in DOWN', 'f"topic read {kind.filter(site)}" for kind in DOWN')],
        [f"{_DELIVERY}test_device_reads_what_is_for_another"],
        slow=True,
    ),
    Weakening(
        "the broker asks for no certificate",
        "bowerbird_server.broker.config",
        [('"require_certificate true"', '"require_certificate false"'), ('"allow_anonymous false"', '"allow_anonymous true"')],
        [f"{_DELIVERY}test_no_certificate"],
        slow=True,
    ),
    Weakening(
        "a client says itself which session is its own",
        "bowerbird_server.broker.config",
        [('        "use_username_as_clientid true",\n', "")],
        [f"{_DELIVERY}test_device_takes_the_client_id_of_another"],
        slow=True,
    ),
    Weakening(
        "the deny list is not looked at when rules are made",
        "bowerbird_server.broker.embedded",
        [
            (
                "allowed = {name: site for name, site in {**kept, **devices}.items() if name not in denied}",
                "allowed = {**kept, **devices}",
            )
        ],
        [f"{_DELIVERY}test_revoked_device_stays_out_after_a_restart_and_a_late_catalogue"],
        slow=True,
    ),
    Weakening(
        "no limit to a packet",
        "bowerbird_server.broker.config",
        [('        f"max_packet_size {MAX_PACKET_BYTES}",\n', "")],
        [f"{_DELIVERY}test_packet_limit"],
        slow=True,
    ),
    # -- what devices send
    Weakening(
        "the image need not have the digest of its header",
        "bowerbird_wire.codec",
        [("    if hashlib.sha256(image).hexdigest() != header.image_sha256:\n", "    if False:\n")],
        ["unit/test_wire.py::test_the_image_of_another_frame_is_a_digest_error"],
    ),
    Weakening(
        "messages of any size are read",
        "bowerbird_wire.codec",
        [("    if len(payload) > limit:\n", "    if False:\n")],
        ["unit/test_wire.py::test_the_limits_of_size_hold"],
    ),
    Weakening(
        "a frame may be another device's",
        "bowerbird_server.ingest.arrival",
        [("        if header.device != topic.device:\n", "        if False:\n")],
        ["attacks/test_hostile_frames.py::test_a_frame_in_another_devices_name_is_refused"],
    ),
    Weakening(
        "a reference may show any frame's picture",
        "bowerbird_server.catalogue.references",
        [("twin is not None and _place(header) == tuple(twin[name] for name in _PLACE)", "twin is not None")],
        ["attacks/test_hostile_frames.py::test_a_reference_shows_no_picture_of_another_device_or_camera"],
    ),
    Weakening(
        "the digest that a reference claims is taken for its picture's",
        "bowerbird_server.ingest.ingest",
        [(" if item.header.frame_id in deleted and not item.is_reference}", " if item.header.frame_id in deleted}")],
        ["integration/test_references.py::test_a_reference_cannot_have_somebody_elses_blob_deleted"],
    ),
    Weakening(
        "pictures of any size are taken",
        "bowerbird_server.ingest.image_header",
        [
            ("size.width * size.height <= MAX_PIXELS", "True"),
            ("0 < size.width <= MAX_SIDE and 0 < size.height <= MAX_SIDE", "True"),
        ],
        ["unit/test_image_header.py::test_a_declared_bomb_is_refused"],
    ),
    Weakening(
        "parts that are not their message make a frame",
        "bowerbird_server.ingest.chunks",
        [("        if transfer_id(bytes(message)) != key.transfer:\n", "        if False:\n")],
        ["attacks/test_hostile_frames.py::test_parts_that_are_not_what_they_were_announced_as_make_nothing"],
    ),
    Weakening(
        "requests for blocks queue without end",
        "bowerbird_server.fleet.offers",
        [("deque(maxlen=MAX_WAITING_PER_DEVICE)", "deque()")],
        ["unit/test_offers.py::test_a_flood_of_requests_is_bounded"],
    ),
    Weakening(
        "a block request names any file",
        "bowerbird_server.releases.repository_files",
        [("    if _PATH.fullmatch(path) is None:\n", "    if False:\n")],
        [
            "unit/test_offers.py::test_no_path_leads_out_or_to_weights",
            "integration/test_repository.py::test_no_request_leaves_what_is_meant_to_be_read",
        ],
    ),
    Weakening(
        "whatever a device says of itself is written down",
        "bowerbird_server.catalogue.fleet",
        [
            (
                "json.dumps(_counters(health), sort_keys=True)",
                "json.dumps(dataclasses.asdict(health), sort_keys=True, default=str)",
            )
        ],
        ["attacks/test_hostile_devices.py::test_no_message_of_one_device_stops_the_others"],
    ),
    Weakening(
        "what pages look up in a device's words may be anything",
        "bowerbird_server.catalogue.fleet",
        [("json.dumps(_counters(health), sort_keys=True)", "json.dumps(_plain(health), sort_keys=True)")],
        ["attacks/test_hostile_devices.py::test_what_a_device_says_of_itself_stops_neither_pages_nor_metrics_nor_the_loop"],
    ),
    Weakening(
        "a number of any length is made a text",
        "bowerbird_wire.codec",
        [("{_as_text(key, where): value for", "{str(key): value for")],
        ["attacks/test_hostile_devices.py::test_a_number_of_any_length_in_a_message_is_an_answer_and_no_crash_of_ingest"],
    ),
    Weakening(
        "a device's words go into the log as they are",
        "bowerbird_server.fleet.log_lines",
        [("return text if text.isprintable() else", "return text if True else")],
        [
            "attacks/test_hostile_devices.py::test_a_device_forges_no_line_of_the_log",
            "attacks/test_hostile_devices.py::test_a_frame_forges_no_line_of_the_log_of_ingest",
        ],
    ),
    # -- people
    Weakening(
        "posts need no CSRF token",
        "bowerbird_server.web.auth",
        [("if unsafe and session and not _is_form(path) and not csrf_matches(", "if False and not csrf_matches(")],
        [f"{_WEB}test_posts_on_a_cookie_need_the_csrf_token_and_the_same_origin"],
    ),
    Weakening(
        "posts of other origins are taken",
        "bowerbird_server.web.auth",
        [("            if unsafe and not _same_origin(request.headers):\n", "            if False:\n")],
        [f"{_WEB}test_posts_on_a_cookie_need_the_csrf_token_and_the_same_origin"],
    ),
    Weakening(
        "roles are not looked at",
        "bowerbird_server.web.permissions",
        [("        if principal.role < self.role:\n", "        if False:\n")],
        [f"{_ACCESS}test_every_role_is_refused_and_let_through_as_the_table_says"],
    ),
    Weakening(
        "rows of other sites are shown",
        "bowerbird_server.catalogue.scope",
        [('_view(name, THEIRS.get(name, "0"))', '_view(name, "1")')],
        [f"{_ACCESS}test_an_id_of_another_site_is_like_one_that_does_not_exist"],
    ),
    Weakening(
        "a revoked token is good",
        "bowerbird_server.catalogue.accounts",
        [('row["revoked_at"] is not None or ', "")],
        [f"{_ACCESS}test_a_token_is_good_until_it_expires_or_is_revoked"],
    ),
    Weakening(
        "sessions do not end",
        "bowerbird_server.catalogue.sessions",
        [(' or now_s - row["seen_at"] > ages.idle_s or now_s - row["created_at"] > ages.oldest_s', "")],
        [f"{_ACCESS}test_a_session_ends_by_idleness_age_password_and_removal"],
    ),
    Weakening(
        "log-ins may be tried without end",
        "bowerbird_server.web.login",
        [("    if wait_s > 0:\n", "    if False:\n")],
        [f"{_ACCESS}test_who_tries_too_often_is_told_to_wait_even_with_the_right_password"],
    ),
    Weakening(
        "bodies of any size are read",
        "bowerbird_server.web.auth",
        [("_LARGEST_BODY_BYTES = 4 * 1024 * 1024", "_LARGEST_BODY_BYTES = 4 * 1024**9")],
        [f"{_WEB}test_a_body_too_large_is_refused_unread"],
    ),
    Weakening(
        "one may approve one's own rollout",
        "bowerbird_server.catalogue.rollouts",
        [('        if row["state"] == State.DRAFT.value and same:\n', "        if False:\n")],
        [f"{_ACCESS}test_whoever_started_a_rollout_does_not_approve_it_under_any_name"],
    ),
    Weakening(
        "the audit log is not verified",
        "bowerbird_server.access.event_chain",
        [("        if digest_of(before, position, event) != digest:\n", "        if False:\n")],
        ["unit/test_access.py::test_an_edit_of_any_column_is_found_at_its_place"],
    ),
    Weakening(
        "an audit log that was cut is whole",
        "bowerbird_server.access.event_chain",
        [("    if beyond:\n", "    if False:\n")],
        ["unit/test_access.py::test_rows_cut_from_the_end_are_missed_by_an_anchor_only"],
    ),
    # -- reports
    Weakening(
        "a report need not be signed",
        "bowerbird_server.identity.report_check",
        [("        if not report.signature:\n", "        if True:\n            return ''\n        if not report.signature:\n")],
        [
            f"{_REPORTS}test_a_report_without_a_signature_changes_nothing_and_raises_an_alarm",
            f"{_REPORTS}test_a_report_with_a_word_changed_is_not_the_devices",
        ],
    ),
    Weakening(
        "a report may be signed by any device of the site",
        "bowerbird_server.identity.report_check",
        [(" and common_name(leaf) == device", "")],
        [f"{_REPORTS}test_another_devices_key_signs_for_nobody_else"],
    ),
    Weakening(
        "a report may be signed by any key",
        "bowerbird_server.identity.report_check",
        [("not (is_later and self._verifies(leaf))", "False")],
        [f"{_REPORTS}test_a_key_that_nobody_certified_signs_for_nobody"],
    ),
    Weakening(
        "the signature of a report is not verified",
        "bowerbird_server.identity.report_check",
        [("        key.verify(report.signature, report_bytes(device, report), ec.ECDSA(hashes.SHA256()))\n", "")],
        [f"{_REPORTS}test_a_report_with_a_word_changed_is_not_the_devices"],
    ),
    Weakening(
        "a copy of an old report says what runs now",
        "bowerbird_server.catalogue.fleet",
        [("        if report.at_ms < newest_ms:\n", "        if False:\n")],
        [f"{_REPORTS}test_a_copy_of_a_report_is_worth_nothing_later"],
    ),
    # -- models
    Weakening(
        "a job need not be signed",
        "bowerbird_models.signing",
        [("        key.verify_signature(Signature(job.key_id, job.signature.hex()), _job_bytes(job))\n", "        pass\n")],
        ["unit/test_package.py::test_a_signed_job_holds_for_its_device_and_time_and_nothing_in_it_can_be_changed"],
    ),
    Weakening(
        "a job is good for every device",
        "bowerbird_models.signing",
        [("    if job.extra.get(JOB_DEVICE) != device:\n", "    if False:\n")],
        ["unit/test_package.py::test_a_signed_job_holds_for_its_device_and_time_and_nothing_in_it_can_be_changed"],
    ),
    Weakening(
        "releases may fall",
        "bowerbird_agent.updates.source",
        [("        if release < floor:\n", "        if False:\n")],
        [f"{_UPDATE}test_a_rollback_to_an_older_release_is_refused_also_with_tufs_folder_wiped"],
        also={"bowerbird_agent.updates.updater": [("    if job.release < release_floor:\n", "    if False:\n")]},
    ),
    Weakening(
        "a clock may be set back",
        "bowerbird_agent.updates.source",
        [("        if self._wall_ms() < self.time_floor_ms:\n", "        if False:\n")],
        [f"{_UPDATE}test_old_metadata_is_refused_while_the_clock_is_set_back"],
        also={"bowerbird_agent.updates.updater": [("    if now_ms < time_floor_ms:\n", "    if False:\n")]},
    ),
    Weakening(
        "a model may keep its weights elsewhere",
        "bowerbird_models.onnx_file",
        [("if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value == 1):", "if False:")],
        ["unit/test_metadata.py::test_weights_outside_the_file_are_refused"],
    ),
    Weakening(
        "arrays may need pickle",
        "bowerbird_models.golden",
        [('    if dtype.hasobject or dtype.kind not in "buif":\n', "    if False:\n")],
        ["unit/test_package.py::test_an_npz_that_needs_trust_is_refused"],
    ),
    Weakening(
        "a package may name any file",
        "bowerbird_models.manifest",
        [("_NAME.fullmatch(file.name) is None or ", "")],
        [f"{_UPDATE}test_a_signed_manifest_that_names_a_forbidden_file_is_refused"],
    ),
    Weakening(
        "a link may stand for a file of a package",
        "bowerbird_models.package",
        [("os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK", "os.O_RDONLY | os.O_NONBLOCK")],
        ["unit/test_package.py::test_a_file_behind_a_symbolic_link_or_missing_is_refused"],
    ),
    Weakening(
        "a restored site lets everybody in who was in before",
        "bowerbird_server.backup",
        [("            accounts.forget_credentials(cat, actor)\n", "")],
        ["attacks/test_restore.py::test_no_token_session_or_claim_of_before_is_good_in_a_restored_site"],
    ),
    Weakening(
        "a restored site knows of no later revocation",
        "bowerbird_server.privacy.erase",
        [('    identity.shut_out_again(cat, (entry for entry in entries if entry["kind"] == "device"), actor)\n', "")],
        ["attacks/test_restore.py::test_a_device_that_was_revoked_after_the_backup_is_not_let_in_by_a_restore"],
    ),
)


class _Weakener(importlib.abc.MetaPathFinder):
    """Finds one module and gives it other source."""

    def __init__(self, weakening: Weakening) -> None:
        self._weakening = weakening

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        edits = self._weakening.all_edits().get(name)
        if edits is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _WeakLoader(name, spec.origin, edits)
        return spec


class _WeakLoader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, edits: Edits) -> None:
        super().__init__(name, path)
        self._edits = edits

    def get_code(self, fullname: str) -> CodeType:
        return compile(weakened_source(self._edits, Path(self.path)), self.path, "exec", dont_inherit=True)


def weakened_source(edits: Edits, path: Path) -> str:
    """The module's text with the edits.

    Raises:
        ValueError: an edit does not fit.
    """
    text = path.read_text(encoding="utf-8")
    for before, after in edits:
        if text.count(before) != 1:
            raise ValueError(f"{path} has {text.count(before)} times {before!r}; the table must follow the code")
        text = text.replace(before, after)
    return text


def source_of(module: str) -> Path:
    """The file of a module of ours, without importing it."""
    return ROOT / module.split(".", maxsplit=1)[0].removeprefix("bowerbird_") / f"{module.replace('.', '/')}.py"


def preload() -> None:
    """What every test needs and no weakening touches, imported once for all of them."""
    for name in _PRELOADED:
        importlib.import_module(name)


class _Failures:
    """A plugin that notes which tests failed, and whether by their own word."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.passed = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and report.when == "call":
            self.failed.append(report.nodeid.split("[")[0].removeprefix("tests/"))
        self.passed += report.passed and report.when == "call"


def try_one(weakening: Weakening) -> dict[str, object]:
    """Run the tests of a weakening in a child of this process."""
    reading, writing = os.pipe()
    began_s = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            import pytest

            sys.meta_path.insert(0, _Weakener(weakening))
            noted = _Failures()
            ids = [str(ROOT / "tests" / each) for each in weakening.caught_by]
            options = [
                "-q",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:xdist",
                f"--timeout={TIMEOUT_S}",
                f"--rootdir={ROOT}",
                "-m",
                "",
            ]
            code = pytest.main([*options, f"-c{ROOT / 'pyproject.toml'}", *ids], plugins=[noted])
            touched = set(weakening.all_edits()) <= set(sys.modules)
            out = {
                "name": weakening.name,
                "exit": int(code),
                "failed": noted.failed,
                "passed": noted.passed,
                "touched": touched,
            }
            os.write(writing, json.dumps(out).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        content = answer.read()
    os.waitpid(child, 0)
    seconds = round(time.monotonic() - began_s, 1)
    if content:
        return {**json.loads(content), "seconds": seconds}
    return {"name": weakening.name, "exit": -1, "failed": [], "passed": 0, "touched": False}


def results(names: Sequence[str]) -> Iterator[dict[str, object]]:
    """What came of the weakenings of these names, in the order of the table."""
    preload()
    for weakening in WEAKENINGS:
        if weakening.name in names:
            yield try_one(weakening)


if __name__ == "__main__":
    for result in results(sys.argv[1:] or [weakening.name for weakening in WEAKENINGS]):
        print(json.dumps(result), flush=True)
