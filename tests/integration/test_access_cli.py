"""`bowerbird users`, `tokens`, `audit` and `rollout approve`, as an operator types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bowerbird_server.access.roles import Role, Sites
from bowerbird_server.catalogue import Catalogue, accounts, audit, fleet, rollouts
from bowerbird_server.cli.app import app
from bowerbird_server.errors import Conflict, EnvironmentFault, ServerError
from bowerbird_server.layout import DataFolder

PASSWORD = "four random words stand"


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "site").make()
    Catalogue(made.catalogue).close()
    return made


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    path.chmod(0o600)
    return path


def run(folder: DataFolder, *words: str, **more: Any) -> Result:
    return CliRunner().invoke(app, [*words, "--data", str(folder.root)], **more)


def test_a_user_is_made_changed_and_removed(folder: DataFolder, password_file: Path) -> None:
    options = ("--password-file", str(password_file))
    assert run(folder, "users", "add", "root", "--role", "administrator", *options).exit_code == 0
    assert run(folder, "users", "add", "ada", "--role", "labeller", "--site", "north", *options).exit_code == 0
    rows = json.loads(run(folder, "users", "list", "--json").stdout)
    assert [(row["name"], row["role"], row["sites"]) for row in rows] == [
        ("ada", "labeller", "north"),
        ("root", "administrator", "all"),
    ]
    assert "password" not in rows[0]
    assert run(folder, "users", "role", "ada", "--role", "operator").exit_code == 0
    assert run(folder, "users", "passwd", "ada", "--password-file", "-", input="other random words stand\n").exit_code == 0
    with Catalogue(folder.catalogue) as cat:
        assert accounts.principal_of_password(cat, "ada", PASSWORD) is None
        ada = accounts.principal_of_password(cat, "ada", "other random words stand")
        assert ada is not None
        assert (ada.role, ada.sites) == (Role.OPERATOR, Sites())
    assert run(folder, "users", "remove", "ada").exit_code == 0
    assert isinstance(run(folder, "users", "remove", "root").exception, Conflict)


def test_a_password_file_that_others_can_read_is_refused(folder: DataFolder, password_file: Path) -> None:
    password_file.chmod(0o644)
    done = run(folder, "users", "add", "ada", "--password-file", str(password_file))
    assert isinstance(done.exception, EnvironmentFault)
    assert "chmod 600" in str(done.exception)


def test_no_command_takes_a_password_as_an_argument() -> None:
    """What stands on a command line is read by everybody on the machine."""
    for name in ("add", "passwd"):
        help_text = CliRunner().invoke(app, ["users", name, "--help"]).stdout
        assert "--password-file" in help_text
        assert "--password " not in help_text


def test_a_token_is_printed_once_and_revoked(folder: DataFolder) -> None:
    made = run(folder, "tokens", "add", "prometheus", "--role", "metrics", "--site", "north")
    token = made.stdout.strip()
    (row,) = json.loads(run(folder, "tokens", "list", "--json").stdout)
    assert (row["role"], row["sites"], row["state"]) == ("metrics", "north", "active")
    assert token not in json.dumps(row)
    assert row["expires_at"] > row["created_at"]
    with Catalogue(folder.catalogue) as cat:
        assert accounts.principal_of_token(cat, token) is not None
        assert run(folder, "tokens", "revoke", row["id"]).exit_code == 0
        assert accounts.principal_of_token(cat, token) is None


@pytest.mark.parametrize(
    "words",
    [
        ("tokens", "add", "x", "--role", "root"),
        ("tokens", "add", "x", "--role", "administrator", "--site", "north"),
        ("tokens", "add", "x", "--days", "-1"),
        ("tokens", "add", "Bad Name"),
        ("tokens", "revoke", "nothing"),
        ("users", "passwd", "nobody"),
        ("audit", "verify", "--anchor", "1:xyz"),
    ],
)
def test_what_cannot_be_is_refused_in_words(folder: DataFolder, words: tuple[str, ...]) -> None:
    done = run(folder, *words)
    assert isinstance(done.exception, ServerError)
    assert len(str(done.exception)) > 20


def test_the_audit_log_is_listed_and_verified_and_an_edit_ends_with_1(folder: DataFolder) -> None:
    run(folder, "tokens", "add", "ci")
    rows = json.loads(run(folder, "audit", "list", "--json").stdout)
    assert rows[0]["kind"] == "token added"
    assert rows[0]["actor"].endswith("cli")
    assert rows[0]["origin"] == "local"
    whole = run(folder, "audit", "verify")
    assert whole.exit_code == 0
    anchor = whole.stdout.strip().split(" ")[-1]
    run(folder, "tokens", "add", "later")
    assert run(folder, "audit", "verify", "--anchor", anchor).exit_code == 0
    with Catalogue(folder.catalogue) as cat:
        cat.execute("DROP TRIGGER event_is_never_deleted")
        cat.execute("DELETE FROM event WHERE position >= 1")
    cut = run(folder, "audit", "verify")
    assert isinstance(cut.exception, ServerError)
    assert "cut off" in str(cut.exception)


def test_who_saw_a_frame_is_listed(folder: DataFolder) -> None:
    with Catalogue(folder.catalogue) as cat:
        for _ in range(3):
            audit.note_sight(cat, "ada", "f" * 64)
    (row,) = json.loads(run(folder, "audit", "seen", "--frame", "f" * 64, "--json").stdout)
    assert row["person"] == "ada"
    assert json.loads(run(folder, "audit", "seen", "--who", "eve", "--json").stdout) == []


def test_a_draft_is_approved_by_somebody_else_only(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bowerbird_server.cli.rollout.actor", lambda: "ben@cli")
    with Catalogue(folder.catalogue) as cat:
        fleet.add_device(cat, "cam-01", "site", "test")
        cat.insert(
            "model",
            {
                "digest": "a" * 64,
                "created_at": "2026-01-01",
                "origin": "imported",
                "state": "champion",
                "onnx_sha256": "b" * 64,
                "manifest": "{}",
                "class_names": "[]",
            },
        )
        mine = rollouts.start_rollout(cat, "a" * 64, 1, ["cam-01"], "ben@cli", approved=False)
        assert isinstance(run(folder, "rollout", "approve", mine).exception, Conflict)
        theirs = rollouts.start_rollout(cat, "a" * 64, 1, ["cam-01"], "scheduler", approved=False)
        assert run(folder, "rollout", "approve", theirs).exit_code == 0
        assert rollouts.get(cat, theirs)["state"] == "running"
