"""The faults that the design of identity and deployment names, each with the tests that inject it.

In: this table. Out: a part of docs/faults.md, written by `python -m bowerbird_testing.identity_faults` in `tests/`; a test holds it
against the design's words, the tests that there are, and the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
BEGIN = "<!-- identity faults: written by `python -m bowerbird_testing.identity_faults` -->\n"

FAULTS = """reply lost and retried 10 times; server killed after commit; 16 claims on one token; token late by a second; clocks 1970 \
and +10 years; power cut at each step of writing the identity; certificate expired 60 and 120 days offline; CA rolled \
with half the fleet offline; ACL half-written; state folder full, read-only, tmpfs; wrong wheel ABI; deadlocked capture \
thread while MQTT is fine; install killed midway; two installs at once; backup under load; restore of an older backup; \
redactor crashes, mask of another resolution"""

_CLAIMS, _KILLED = "integration/test_claims.py::", "faults/test_identity_killed.py::"


@dataclass(frozen=True)
class IdentityFault:
    """`phrase` as the design says it, what must hold afterwards, node ids below `tests/` without parameters."""

    phrase: str
    holds: str
    tests: tuple[str, ...]


ROWS = (
    IdentityFault(
        "reply lost and retried 10 times",
        "the same key gets the same certificate, also when the device has started anew",
        (
            f"{_CLAIMS}test_a_retry_with_the_same_key_gives_the_same_certificate_ten_times",
            "integration/test_enrolment.py::test_enrolling_again_with_the_stored_key_after_a_lost_answer_gives_the_same",
        ),
    ),
    IdentityFault(
        "server killed after commit",
        "the answer is the same when it is back",
        (f"{_CLAIMS}test_a_server_killed_after_the_commit_gives_the_same_answer_when_it_is_back",),
    ),
    IdentityFault("16 claims on one token", "one wins", (f"{_CLAIMS}test_of_16_claims_on_one_token_at_once_exactly_one_wins",)),
    IdentityFault(
        "token late by a second",
        "refused, in the words for every other reason",
        (f"{_CLAIMS}test_a_token_is_good_to_its_last_second_and_late_by_none",),
    ),
    IdentityFault(
        "clocks 1970 and +10 years",
        "the board says whose clock is wrong and its token stays good; an enrolled one uses its newest certificate",
        (
            "integration/test_enrolment.py::test_a_board_whose_clock_is_wrong_is_told_the_servers_time_and_that_its_token_is_good",
            "integration/test_renewal.py::test_with_a_clock_that_is_wrong_for_all_the_newest_is_taken",
        ),
    ),
    IdentityFault(
        "power cut at each step of writing the identity",
        "what enrol or renew has returned is there, whatever was not fsynced; killed at any step it goes on with the same key",
        (
            f"{_KILLED}test_a_power_cut_at_each_step_of_writing_the_identity_leaves_what_was_promised",
            f"{_KILLED}test_killed_at_each_step_of_enrolment_it_is_enrolled_at_the_next_try_as_the_same_device",
            f"{_KILLED}test_killed_at_each_step_of_a_renewal_it_has_an_identity_all_the_time_and_the_next_one_at_the_next_try",
        ),
    ),
    IdentityFault(
        "certificate expired 60 and 120 days offline",
        "60: renewed by proof of its key; 120: it must claim again, and can",
        (
            f"{_CLAIMS}test_an_expired_certificate_renews_for_90_days",
            "integration/test_renewal.py::test_an_expired_certificate_renews_by_proof_of_its_key",
            "integration/test_renewal.py::test_one_that_expired_120_days_ago_must_claim_again_and_can",
        ),
    ),
    IdentityFault(
        "CA rolled with half the fleet offline",
        "nobody is lost",
        (f"{_CLAIMS}test_a_ca_that_rolls_while_half_the_fleet_is_offline_loses_nobody",),
    ),
    IdentityFault(
        "ACL half-written",
        "the broker goes on with the rules before, and who was shut out stays out",
        ("security/test_broker_delivery.py::test_deny_list_half_written",),
    ),
    IdentityFault(
        "state folder full, read-only, tmpfs",
        "the identity that was there stays; in memory none is made unless somebody asks for it",
        (
            f"{_KILLED}test_a_full_disk_while_renewing_leaves_the_identity_that_was_there",
            f"{_KILLED}test_a_read_only_disk_while_renewing_leaves_the_identity_that_was_there",
            "integration/test_enrolment.py::test_an_identity_in_memory_is_refused_and_may_be_asked_for",
        ),
    ),
    IdentityFault(
        "wrong wheel ABI",
        "refused before anything is fetched or installed",
        ("security/test_agent_release.py::test_a_wheel_of_another_python_or_machine_is_refused",),
    ),
    IdentityFault(
        "deadlocked capture thread while MQTT is fine",
        "the camera is left behind and named, the others go on; where it is the detector, the process ends and is started again",
        (
            "integration/test_agent_supervision.py::test_a_camera_that_blocks_for_ever_is_no_hang_of_the_agent",
            "integration/test_agent_supervision.py::test_a_detector_that_never_answers_takes_the_process_down_and_is_named",
        ),
    ),
    IdentityFault(
        "install killed midway",
        "the next one begins it again",
        ("deploy/test_install.py::test_an_update_that_is_killed_midway_a_bad_release_and_the_way_back",),
    ),
    IdentityFault(
        "two installs at once", "they do not meet", ("deploy/test_install.py::test_two_installations_at_once_do_not_meet",)
    ),
    IdentityFault(
        "backup under load",
        "it ends, and every row has its blob",
        ("integration/test_backup.py::test_a_backup_made_while_frames_come_and_go_is_consistent",),
    ),
    IdentityFault(
        "restore of an older backup",
        "devices that are newer are adopted, who was shut out stays out, what was erased stays gone",
        (
            f"{_CLAIMS}test_a_device_newer_than_a_restored_catalogue_is_adopted",
            f"{_CLAIMS}test_who_was_shut_out_after_the_backup_stays_out_of_the_restored_site",
            "integration/test_erase.py::test_a_backup_made_before_an_erasure_does_not_bring_the_frame_back",
            "integration/test_backup.py::test_with_a_damaged_log_of_deletions_nothing_is_restored",
        ),
    ),
    IdentityFault(
        "redactor crashes, mask of another resolution",
        "no picture is kept; the camera stops and says so",
        (
            "unit/test_redaction.py::test_a_redactor_that_crashes_has_no_picture_kept",
            "unit/test_redaction.py::test_pictures_of_another_shape_than_the_masks_were_drawn_on_stop_the_camera",
        ),
    ),
)


def table() -> str:
    """The part of the page."""
    lines = ["| Fault | What holds | Tests |", "| --- | --- | --- |"]
    for row in ROWS:
        tests = "<br>".join("`{}` `{}`".format(*test.split("::")) for test in row.tests)
        lines.append(f"| {row.phrase} | {row.holds} | {tests} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write it behind everything else of the page."""
    before = PAGE.read_text("utf-8").partition(BEGIN)[0]
    PAGE.write_text(before + BEGIN + table(), "utf-8")


if __name__ == "__main__":
    main()
