"""Every attack that the designs of identity and of updates name, and the tests that carry it out.

In: the two lists as the designs have them, word for word. Out: one row for each part of these lists; a mark `attack` on the tests
(`tests/conftest.py`), so that `make attacks` runs them all; `docs/attacks.md`, which `python -m bowerbird_testing.attack_table`
writes. `attacks/test_table.py` holds the rows to the lists and to the tests that there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "attacks.md"

IDENTITY = """\
requests with reserved, wildcard, unicode, over-long names, CA:TRUE, foreign SAN, weak keys, 1 MB; token brute force, \
reuse, leak in logs, `ps` or URL; a public-CA man in the middle; stolen key renews; suspended device publishes, \
reconnects, renews, claims; device certificate on the people's API, on another site's prefix, on the admin socket; \
object references across scopes; approving one's own rollout; audit row edited or cut; raw pixels left on disk, in EXIF \
or in a core dump; wheel swapped, source package slipped in, requirement without hash; restore used to revive a revoked \
device or an erased frame; slow-loris and half-open floods."""

UPDATES = """\
replay old metadata, also after wiping the device's TUF directory; freeze, also with the clock set back; mix and match; \
fast-forward; stolen director; stolen timestamp and snapshot; root with too few signatures; endless data, deep JSON, \
huge targets; traversal in every name; cross-device subscribe and publish (test *delivery*, not SUBACK); Response Topic \
aimed elsewhere; client-id take-over; certificate requests for reserved names, wildcards, CA:TRUE; token reuse and \
races; revoked device with a live session; forged and replayed reports; device that lies about success; hostile ONNX \
(external data, loop bomb, memory bomb, deep functions, NaN, wrong shapes); pickle, engine or NPZ-with-pickle under \
another name; zstd bombs (the declared size must not disable the limit); image bombs, truncated and polyglot images; TLS \
downgrade; local tampering between check and use; request floods; server API without approval, CSRF, IDOR; secrets in \
logs."""


@dataclass(frozen=True)
class Attack:
    """One row.

    Args:
        phrase: its part of the list, word for word.
        what: what is done, and what must come of it.
        tests: node ids below `tests/`, without parameters.
        awaits: a module of ours without which neither the feature nor its tests are here yet; "" where both are.
    """

    phrase: str
    what: str
    tests: Sequence[str]
    awaits: str = field(default="")


_CLAIMS, _ENROL, _RENEWAL = "integration/test_claims.py::", "integration/test_enrolment.py::", "integration/test_renewal.py::"
_BROKER, _ACCESS, _API = "security/test_broker_delivery.py::", "integration/test_access.py::", "integration/test_web_api.py::"
_WEB, _UPDATE, _HOSTILE = (
    "integration/test_web_server.py::",
    "integration/test_update.py::",
    "attacks/test_hostile_updates.py::",
)
_TEXT = "integration/test_enrol_by_text.py::"
_REPORTS = "attacks/test_hostile_reports.py::"
_DEVICES, _FRAMES, _MODELS = (
    "attacks/test_hostile_devices.py::",
    "attacks/test_hostile_frames.py::",
    "attacks/test_hostile_models.py::",
)
_RELEASE, _PEOPLE, _MIDDLE = (
    "security/test_agent_release.py::",
    "attacks/test_devices_and_people.py::",
    "attacks/test_man_in_the_middle.py::",
)
_REQUEST = f"{_CLAIMS}test_a_request_that_wants_too_much_is_refused_by_name_and_the_token_stays_good"
_RELEASES = "bowerbird_models.agent_release"
_ERASURE = "bowerbird_server.privacy.erase"

OF_IDENTITY: tuple[Attack, ...] = (
    Attack(
        "requests with reserved, wildcard, unicode, over-long names",
        "each is refused with its own reason",
        [
            _REQUEST,
            "unit/test_authority.py::test_a_device_never_gets_a_reserved_name",
            f"{_BROKER}test_a_name_equal_to_a_privileged_one_cannot_be_had",
        ],
    ),
    Attack("CA:TRUE", "a request that wants to be an authority is refused", [_REQUEST]),
    Attack("foreign SAN", "a request for further names is refused", [_REQUEST]),
    Attack(
        "weak keys",
        "RSA, small curves, a signature by another key",
        [_REQUEST, f"{_CLAIMS}test_a_request_whose_signature_is_another_keys_is_refused"],
    ),
    Attack(
        "1 MB",
        "bodies beyond 16 KiB are not read, requests beyond 4 KiB not parsed",
        [f"{_ENROL}test_bodies_beyond_16_kib_are_refused", _REQUEST],
    ),
    Attack(
        "token brute force",
        "after 20 wrong ones an address waits; all answers are the same bytes",
        [
            f"{_ENROL}test_guessing_is_slowed_down",
            f"{_ENROL}test_bad_late_and_used_tokens_get_answers_of_the_same_bytes",
            f"{_CLAIMS}test_nobody_without_a_token_learns_what_is_wrong_with_a_request",
        ],
    ),
    Attack(
        "reuse",
        "with another key: refused, and an alarm; also in another site that was restored",
        [
            f"{_CLAIMS}test_a_second_use_with_another_key_is_refused_and_raises_an_alarm",
            f"{_CLAIMS}test_bad_late_and_used_tokens_are_refused_in_the_same_words",
            "attacks/test_restore.py::test_no_token_session_or_claim_of_before_is_good_in_a_restored_site",
        ],
    ),
    Attack(
        "leak in logs",
        "a claim at the most talkative level, and a whole site, searched for its secrets",
        [
            f"{_ENROL}test_tokens_reach_no_log",
            f"{_CLAIMS}test_tokens_are_nowhere_in_the_catalogue",
            f"{_WEB}test_no_secret_is_in_a_log_a_command_line_or_a_file_that_others_can_read",
        ],
    ),
    Attack(
        "`ps` or URL",
        "tokens are in files and bodies, never in addresses; in an argument only where somebody types the text of a QR code there, "
        "which `enrol -` reads from standard input",
        [
            f"{_TEXT}test_the_command_takes_the_text_as_argument_or_from_standard_input",
            f"{_MIDDLE}test_what_a_board_sends_has_its_token_in_the_body_only",
            f"{_ENROL}test_it_can_do_nothing_but_claim_and_renew",
            f"{_WEB}test_no_secret_is_in_a_log_a_command_line_or_a_file_that_others_can_read",
            "integration/test_access_cli.py::test_no_command_takes_a_password_as_an_argument",
        ],
    ),
    Attack(
        "a public-CA man in the middle",
        "a certificate that the whole machine trusts gets not a byte",
        [
            f"{_MIDDLE}test_a_certificate_of_an_authority_that_the_machine_trusts_gets_no_token",
            f"{_MIDDLE}test_a_device_speaks_to_no_broker_of_an_authority_that_the_machine_trusts",
            f"{_MIDDLE}test_a_board_that_knows_the_pin_only_tells_nobody_its_token_whose_ca_is_another",
            f"{_MIDDLE}test_the_site_itself_is_believed_all_the_while",
            f"{_ENROL}test_a_bundle_whose_ca_was_swapped_is_noticed_by_its_pin",
        ],
    ),
    Attack(
        "stolen key renews",
        "after the original has renewed: both are suspended, a person decides",
        [
            f"{_RENEWAL}test_a_copied_identity_that_renews_after_the_original_suspends_both",
            f"{_CLAIMS}test_an_old_generation_that_renews_after_its_successor_was_used_is_a_clone",
            f"{_CLAIMS}test_a_renewal_without_proof_of_the_old_key_is_refused",
        ],
    ),
    Attack(
        "suspended device publishes, reconnects",
        "nothing arrives and nothing is delivered, within five seconds",
        [
            f"{_BROKER}test_revoked_device_with_live_session",
            f"{_BROKER}test_revoked_device_stays_out_after_a_restart_and_a_late_catalogue",
            f"{_DEVICES}test_who_is_no_active_device_is_not_heard",
        ],
    ),
    Attack(
        "renews, claims",
        "both are refused while it is suspended",
        [f"{_CLAIMS}test_a_suspended_device_neither_renews_nor_claims", f"{_RENEWAL}test_a_suspended_device_is_told_so"],
    ),
    Attack(
        "device certificate on the people's API",
        "it is no log-in at any address",
        [f"{_PEOPLE}test_a_devices_certificate_opens_no_page_and_no_address_of_the_api"],
    ),
    Attack(
        "on another site's prefix",
        "nothing passes",
        [
            f"{_BROKER}test_device_writes_as_another",
            f"{_BROKER}test_device_reads_what_is_for_another",
            f"{_FRAMES}test_a_frame_at_another_place_is_refused",
        ],
    ),
    Attack(
        "on the admin socket",
        "it asks for a login of its own, and gives no right even then",
        [f"{_BROKER}test_the_kick_socket_lets_nobody_in_without_its_login_and_gives_no_right"],
    ),
    Attack(
        "object references across scopes",
        "an id of another site is like one that does not exist",
        [
            f"{_ACCESS}test_an_id_of_another_site_is_like_one_that_does_not_exist",
            f"{_ACCESS}test_nothing_of_another_site_is_in_any_answer",
            f"{_ACCESS}test_filters_do_not_reach_into_another_site",
            f"{_ACCESS}test_a_rollout_with_devices_of_other_sites_is_not_steered_from_one",
        ],
    ),
    Attack(
        "approving one's own rollout",
        "under one's own name, another name, another token of the name",
        [f"{_ACCESS}test_whoever_started_a_rollout_does_not_approve_it_under_any_name"],
    ),
    Attack(
        "audit row edited or cut",
        "by a statement: refused; by somebody with the file: found",
        [
            f"{_ACCESS}test_the_event_log_cannot_be_changed_by_a_statement",
            f"{_ACCESS}test_somebody_with_the_file_who_edits_or_cuts_the_log_is_found_out",
            "unit/test_access.py::test_a_chain_written_anew_does_not_fit_its_anchor",
        ],
    ),
    Attack(
        "raw pixels left on disk",
        "every file of a device and of a site is searched for what was to be covered or erased",
        [
            "integration/test_agent_redaction.py::test_no_file_of_the_device_holds_a_person_that_was_not_redacted",
            "integration/test_agent_redaction.py::test_the_test_above_would_find_a_person",
            "integration/test_erase.py::test_an_erased_picture_is_in_no_file_of_the_site",
        ],
        _ERASURE,
    ),
    Attack(
        "in EXIF",
        "nothing of the source is left beside the pixels",
        [
            "unit/test_image_metadata.py::test_nothing_of_the_source_is_left_and_every_pixel_is",
            "unit/test_redaction.py::test_what_is_stored_holds_no_metadata_of_the_source",
        ],
        _ERASURE,
    ),
    Attack(
        "in a core dump",
        "a crash leaves none",
        ["integration/test_core_dumps.py::test_a_crash_leaves_no_core_although_the_shell_allowed_one"],
        _ERASURE,
    ),
    Attack(
        "wheel swapped",
        "at the server and in the archive; name and length are right",
        [
            f"{_RELEASE}test_a_swapped_wheel_is_refused_although_name_and_length_are_right",
            "integration/test_agent_update.py::test_a_wheel_swapped_at_the_server_is_refused",
        ],
        _RELEASES,
    ),
    Attack(
        "source package slipped in",
        "only wheels that the lock names are in a release",
        [
            f"{_RELEASE}test_a_source_package_or_a_path_among_the_wheels_is_refused",
            f"{_RELEASE}test_a_wheel_beside_the_locked_ones_is_refused",
        ],
        _RELEASES,
    ),
    Attack(
        "requirement without hash",
        "a lock file holds exact versions and hashes, nothing else",
        [f"{_RELEASE}test_a_lock_file_with_anything_but_exact_versions_and_hashes_is_refused"],
        _RELEASES,
    ),
    Attack(
        "restore used to revive a revoked device",
        "the newer log of deletions is applied; no token or session of before is good",
        [
            "integration/test_claims.py::test_who_was_shut_out_after_the_backup_stays_out_of_the_restored_site",
            "attacks/test_restore.py::test_a_device_that_was_revoked_after_the_backup_is_not_let_in_by_a_restore",
            "attacks/test_restore.py::test_without_the_log_that_was_named_nothing_is_restored",
            "attacks/test_restore.py::test_no_token_session_or_claim_of_before_is_good_in_a_restored_site",
            f"{_ACCESS}test_after_a_restore_no_session_or_token_is_good",
        ],
    ),
    Attack(
        "an erased frame",
        "the log of deletions is replayed",
        ["integration/test_erase.py::test_a_backup_made_before_an_erasure_does_not_bring_the_frame_back"],
        _ERASURE,
    ),
    Attack(
        "slow-loris",
        "connections that drip are ended, others are served meanwhile",
        [
            f"{_ENROL}test_connections_that_say_nothing_or_only_drip_are_ended_and_others_are_served_meanwhile",
            f"{_WEB}test_a_peer_that_never_finishes_its_request_is_cut_off_and_others_are_served",
        ],
    ),
    Attack(
        "half-open floods",
        "at the broker, the pages and the claim listener",
        [
            f"{_PEOPLE}test_half_open_connections_keep_nobody_from_the_broker",
            f"{_WEB}test_one_address_does_not_hold_all_connections",
            f"{_ENROL}test_connections_that_say_nothing_or_only_drip_are_ended_and_others_are_served_meanwhile",
        ],
    ),
)

OF_UPDATES: tuple[Attack, ...] = (
    Attack(
        "replay old metadata, also after wiping the device's TUF directory",
        "the release floor lies elsewhere",
        [
            f"{_UPDATE}test_a_rollback_to_an_older_release_is_refused_also_with_tufs_folder_wiped",
            f"{_UPDATE}test_the_release_floor_survives_a_damaged_database",
        ],
    ),
    Attack(
        "freeze, also with the clock set back",
        "expired metadata are refused, and so is a clock below the time floor",
        [f"{_UPDATE}test_expired_metadata_is_refused", f"{_UPDATE}test_old_metadata_is_refused_while_the_clock_is_set_back"],
    ),
    Attack("mix and match", "metadata of two days", [f"{_HOSTILE}test_mix_and_match_of_metadata_that_were_all_good_once"]),
    Attack(
        "fast-forward",
        "it costs updates, and new keys in the root end it",
        [f"{_HOSTILE}test_a_fast_forward_ends_with_new_keys"],
    ),
    Attack(
        "stolen director",
        "it can order what the models role lists, and nothing else",
        [
            f"{_HOSTILE}test_a_stolen_director_installs_only_what_the_models_role_lists",
            f"{_UPDATE}test_a_digest_that_no_metadata_lists_is_refused",
        ],
    ),
    Attack(
        "stolen timestamp and snapshot",
        "they list no model",
        [f"{_HOSTILE}test_stolen_timestamp_and_snapshot_keys_list_no_model"],
    ),
    Attack(
        "root with too few signatures",
        "one of three changes nothing, two do",
        [f"{_HOSTILE}test_a_root_with_too_few_signatures_changes_nothing"],
    ),
    Attack(
        "endless data",
        "given up by its length, after one block",
        [
            f"{_HOSTILE}test_metadata_and_targets_without_end_are_not_fetched",
            "unit/test_update_transfer.py::test_a_file_that_is_not_there_and_one_that_is_too_long_end_the_transfer",
        ],
    ),
    Attack(
        "deep JSON",
        "a refusal, and the next job works",
        [
            f"{_HOSTILE}test_metadata_that_no_parser_likes_end_in_a_refusal",
            f"{_HOSTILE}test_a_manifest_that_is_no_canonical_json_is_refused",
            f"{_ACCESS}test_deep_json_is_an_answer_and_not_a_crash",
            "unit/test_wire.py::test_deep_nesting_is_refused_not_a_crash",
        ],
    ),
    Attack(
        "huge targets",
        "a model longer than what was signed",
        [f"{_HOSTILE}test_metadata_and_targets_without_end_are_not_fetched"],
    ),
    Attack(
        "traversal in every name",
        "block requests, manifests, blobs, topics, cameras",
        [
            "integration/test_repository.py::test_no_request_leaves_what_is_meant_to_be_read",
            f"{_UPDATE}test_a_signed_manifest_that_names_a_forbidden_file_is_refused",
            "integration/test_store.py::test_only_a_digest_may_become_a_path",
            "unit/test_wire.py::test_names_that_could_leave_their_level_are_refused",
            "unit/test_offers.py::test_no_path_leads_out_or_to_weights",
            f"{_ACCESS}test_tricks_with_the_path_open_nothing",
        ],
    ),
    Attack(
        "cross-device subscribe and publish (test *delivery*, not SUBACK)",
        "by every filter and every topic; wills and retained messages too",
        [
            f"{_BROKER}test_device_reads_what_is_for_another",
            f"{_BROKER}test_device_writes_as_another",
            f"{_BROKER}test_device_leaves_a_will_for_another",
            f"{_BROKER}test_device_retains_for_those_who_come_later",
            "integration/test_chunks.py::test_a_device_can_neither_see_nor_spoil_the_parts_of_another",
            f"{_FRAMES}test_a_frame_in_another_devices_name_is_refused",
            f"{_FRAMES}test_a_reference_in_another_devices_name_is_refused",
            f"{_FRAMES}test_a_reference_shows_no_picture_of_another_device_or_camera",
            "integration/test_references.py::test_a_reference_cannot_have_somebody_elses_blob_deleted",
        ],
    ),
    Attack(
        "Response Topic aimed elsewhere",
        "the server answers the topic of the question; the broker delivers nothing by it",
        [
            f"{_DEVICES}test_a_response_topic_aims_nothing",
            f"{_PEOPLE}test_a_response_topic_makes_the_broker_deliver_nothing_elsewhere",
        ],
    ),
    Attack(
        "client-id take-over",
        "of a device, of the server",
        [
            f"{_BROKER}test_device_takes_the_client_id_of_another",
            f"{_BROKER}test_device_takes_the_session_of_the_server",
            f"{_BROKER}test_user_name_and_password_beside_a_certificate",
        ],
    ),
    Attack("certificate requests for reserved names, wildcards, CA:TRUE", "refused by name", [_REQUEST]),
    Attack(
        "token reuse and races",
        "of 16 at once one wins",
        [
            f"{_CLAIMS}test_of_16_claims_on_one_token_at_once_exactly_one_wins",
            f"{_CLAIMS}test_a_second_use_with_another_key_is_refused_and_raises_an_alarm",
        ],
    ),
    Attack(
        "revoked device with a live session",
        "cut off, also where its certificate has expired meanwhile; what waited for it is gone",
        [
            f"{_BROKER}test_revoked_device_with_live_session",
            f"{_BROKER}test_revoked_device_with_queued_messages",
            f"{_BROKER}test_session_open_while_its_certificate_expires",
        ],
    ),
    Attack(
        "forged and replayed reports",
        "of another device, of nobody, late and again; by somebody who holds the broker but not the device's key: an alarm",
        [
            f"{_DEVICES}test_a_report_about_another_devices_job_changes_nothing",
            f"{_REPORTS}test_a_report_without_a_signature_changes_nothing_and_raises_an_alarm",
            f"{_REPORTS}test_a_report_with_a_word_changed_is_not_the_devices",
            f"{_REPORTS}test_another_devices_key_signs_for_nobody_else",
            f"{_REPORTS}test_a_key_that_nobody_certified_signs_for_nobody",
            f"{_REPORTS}test_a_copy_of_a_report_is_worth_nothing_later",
            f"{_REPORTS}test_an_agent_of_before_is_believed_until_it_signs_once",
            f"{_DEVICES}test_who_is_no_active_device_is_not_heard",
            "unit/test_rollout.py::test_late_and_repeated_reports_do_not_undo_what_is_known",
            f"{_BROKER}test_device_writes_as_another",
        ],
    ),
    Attack(
        "device that lies about success",
        "success is the right model running, and a later word of another one undoes it; what its own board truly runs nobody can prove",
        [
            "unit/test_rollout.py::test_committed_counts_only_with_the_right_model_running",
            "unit/test_rollout.py::test_a_device_cannot_name_its_own_outcome",
            "integration/test_delivery.py::test_a_rollout_goes_wave_by_wave_to_completion_and_notices_a_device_that_goes_back",
            f"{_DEVICES}test_no_message_of_one_device_stops_the_others",
            f"{_DEVICES}test_what_a_device_says_of_itself_stops_neither_pages_nor_metrics_nor_the_loop",
            f"{_DEVICES}test_a_number_of_any_length_in_a_message_is_an_answer_and_no_crash_of_ingest",
        ],
    ),
    Attack(
        "hostile ONNX (external data, loop bomb, memory bomb, deep functions, NaN, wrong shapes)",
        "refused before it is loaded, or by the child that tests it",
        [
            "unit/test_metadata.py::test_weights_outside_the_file_are_refused",
            f"{_MODELS}test_a_bomb_in_a_model_goes_off_in_the_self_test",
            f"{_MODELS}test_a_file_that_crashes_the_loader_ends_a_child_and_is_refused_by_name",
            f"{_MODELS}test_a_file_that_never_ends_is_refused_when_its_time_is_over",
            f"{_MODELS}test_functions_and_graphs_inside_one_another_are_refused_beyond_a_depth",
            f"{_UPDATE}test_a_signed_model_that_is_not_what_its_golden_file_says_is_refused",
            f"{_UPDATE}test_a_model_that_hangs_in_the_self_test_is_killed_and_refused",
        ],
    ),
    Attack(
        "pickle, engine or NPZ-with-pickle under another name",
        "refused by content",
        [
            f"{_UPDATE}test_a_signed_package_with_forbidden_content_is_refused",
            f"{_UPDATE}test_a_signed_manifest_that_names_a_forbidden_file_is_refused",
            "unit/test_package.py::test_an_npz_that_needs_trust_is_refused",
        ],
    ),
    Attack(
        "zstd bombs (the declared size must not disable the limit)",
        "nothing here unpacks zstd; the arrays of a package are the one thing that is packed",
        [f"{_HOSTILE}test_a_bomb_of_zeros_is_refused_whatever_size_it_declares"],
    ),
    Attack(
        "image bombs, truncated and polyglot images",
        "by their headers; what is served says what it is",
        [
            "unit/test_image_header.py::test_a_declared_bomb_is_refused",
            "unit/test_image_header.py::test_a_jpeg_that_is_cut_in_its_header_is_no_image",
            "integration/test_ingest.py::test_poison_is_refused_and_the_good_frame_behind_it_arrives",
            f"{_FRAMES}test_a_picture_that_is_also_a_page_is_shown_as_a_picture",
        ],
    ),
    Attack(
        "TLS downgrade",
        "broker and pages speak 1.2 and newer, and nothing without TLS",
        [
            f"{_BROKER}test_plain_tcp_and_old_tls",
            f"{_WEB}test_with_the_sites_authority_the_pages_are_served_to_whoever_trusts_its_root",
        ],
    ),
    Attack(
        "local tampering between check and use",
        "links, changed files, keys that others can read or write",
        [
            "unit/test_package.py::test_a_file_behind_a_symbolic_link_or_missing_is_refused",
            "unit/test_package.py::test_any_changed_byte_is_found",
            f"{_UPDATE}test_a_damaged_active_model_gives_way_to_the_previous_at_boot",
            "integration/test_repository.py::test_a_package_that_was_changed_is_not_published",
            f"{_RENEWAL}test_wrong_modes_are_refused_with_the_command_that_puts_them_right",
        ],
    ),
    Attack(
        "request floods",
        "bounded for each device, each address and all together",
        [
            "unit/test_offers.py::test_a_flood_of_requests_is_bounded",
            f"{_ENROL}test_guessing_is_slowed_down",
            f"{_ACCESS}test_who_tries_too_often_is_told_to_wait_even_with_the_right_password",
            "unit/test_access.py::test_a_crowd_of_addresses_takes_bounded_memory",
            f"{_BROKER}test_queue_limit",
            f"{_BROKER}test_packet_limit",
            "integration/test_chunks.py::test_a_devices_oldest_parts_give_way_and_nobody_elses",
        ],
    ),
    Attack(
        "server API without approval",
        "every address, every role; a route that nobody declared",
        [
            f"{_ACCESS}test_every_role_is_refused_and_let_through_as_the_table_says",
            f"{_ACCESS}test_a_route_that_is_missing_in_the_table_is_reached_by_nobody",
            f"{_API}test_every_route_but_login_and_health_is_closed_without_token_or_session",
            "integration/test_api_fuzz.py::test_every_address_answers_as_described_whatever_it_is_asked",
        ],
    ),
    Attack(
        "CSRF",
        "a post needs the session's token and this origin",
        [
            f"{_API}test_posts_on_a_cookie_need_the_csrf_token_and_the_same_origin",
            f"{_API}test_the_session_cookie_is_httponly_and_strict",
        ],
    ),
    Attack(
        "IDOR", "as object references across scopes", [f"{_ACCESS}test_an_id_of_another_site_is_like_one_that_does_not_exist"]
    ),
    Attack(
        "secrets in logs",
        "a whole site is searched, and a device's words forge no line",
        [
            f"{_WEB}test_no_secret_is_in_a_log_a_command_line_or_a_file_that_others_can_read",
            f"{_ACCESS}test_what_was_typed_into_the_wrong_field_is_not_in_the_log",
            f"{_DEVICES}test_a_device_forges_no_line_of_the_log",
            f"{_DEVICES}test_a_frame_forges_no_line_of_the_log_of_ingest",
        ],
    ),
)

# What is no single attack of the lists and belongs to `make attacks` all the same.
BESIDE = (
    "attacks/test_table.py",
    "attacks/test_weakenings.py",
    "attacks/test_hostile_devices.py",
    "attacks/test_hostile_frames.py",
    "attacks/test_hostile_updates.py",
    "attacks/test_restore.py",
    "fuzz/test_parsers.py",
)


def is_attack(nodeid: str) -> bool:
    """Whether a test belongs to `make attacks`, by its id as pytest has it."""
    plain = nodeid.split("[", maxsplit=1)[0].removeprefix("tests/")
    return plain in _TESTS or plain.split("::", maxsplit=1)[0] in BESIDE


_TESTS = {test for attack in (*OF_IDENTITY, *OF_UPDATES) for test in attack.tests}


def page() -> str:
    """The text of `docs/attacks.md`."""
    from bowerbird_testing.weakenings import WEAKENINGS

    lines = [
        "# Attacks, and what shows that each is held off",
        "",
        "Written by `python -m bowerbird_testing.attack_table` (in `tests/`) from the tables that `make attacks` runs; a test fails",
        "when they differ. What somebody who holds one of our keys can still do stands in the row that is about it.",
    ]
    for title, attacks in (("Identity and deployment", OF_IDENTITY), ("Updates, broker, hostile files", OF_UPDATES)):
        lines += ["", f"## {title}", "", "| Attack | What is done, what comes of it | Tests |", "| --- | --- | --- |"]
        for attack in attacks:
            named = "<br>".join(f"`{test.replace('::', '` `')}`" for test in attack.tests)
            lines.append(f"| {attack.phrase} | {attack.what} | {named} |")
    lines += [
        "",
        "## Weakenings",
        "",
        "Each row is a check that is left out of the code while it is imported, in a process of its own; the tests beside it must",
        "fail then.",
        "",
        "| Without this | In | Caught by |",
        "| --- | --- | --- |",
    ]
    for weakening in WEAKENINGS:
        named = "<br>".join(f"`{test.split('::')[1]}`" for test in weakening.caught_by)
        lines.append(f"| {weakening.name} | `{weakening.module}` | {named} |")
    lines += [
        "",
        "## Fuzzing",
        "",
        "`make test` tries the corpus in `tests/fuzz/corpus` with seeded changes of it, and a short run that follows coverage;",
        "`make fuzz` runs as long as it is told to (`make fuzz ARGS='--seconds 600'`), and shows a finding with its input in base64.",
        "What was found became a seed.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
