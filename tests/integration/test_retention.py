"""Retention on a site: what is due goes with a tombstone and its reason, and the command says so before it happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bowerbird_server.catalogue import frames as frame_rows
from bowerbird_server.catalogue.rebuild import read_records
from bowerbird_server.cli.app import app
from bowerbird_server.config import RetentionConfig, load_config
from bowerbird_server.errors import ConfigError
from bowerbird_server.privacy.retention import apply, find_due
from bowerbird_server.site import Site
from bowerbird_testing.frame_messages import frame_message
from bowerbird_testing.lived_in_site import arrived, ingest_of, live_in


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = live_in(tmp_path / "data", tmp_path / "scratch")
    yield site
    site.close()


def limited(site: Site, **days: float) -> Site:
    config = site.config.model_copy(update={"retention": RetentionConfig(**days)})
    return Site(site.folder, config, site.catalogue, site.blobs)


def states(site: Site) -> dict[str, int]:
    return {state: count for state, count in frame_rows.count_by_state(site.catalogue).items() if count}


def test_each_kind_goes_by_its_own_limit_and_its_image_with_it(site: Site) -> None:
    before = states(site)
    rejected = site.catalogue.value("SELECT id FROM frame WHERE state = 'rejected'")
    blob = frame_rows.get(site.catalogue, rejected)["blob"]
    later = datetime.now(UTC) + timedelta(days=8)
    assert apply(limited(site, rejected_days=7), later) == {"retention: rejected for 7 days": before["rejected"]}
    after = states(site)
    assert after.get("rejected", 0) == 0
    assert (after["labelled"], after["received"]) == (before["labelled"], before["received"])
    assert not site.blobs.exists(blob)
    assert rejected in read_records(site.blobs).tombstones
    row = site.catalogue.row("SELECT actor, why FROM deletion WHERE frame = ?", rejected)
    assert row == {"actor": "retention", "why": "retention: rejected for 7 days"}


def test_a_frame_that_retention_deleted_is_refused_when_its_device_sends_it_again(site: Site) -> None:
    assert apply(limited(site, unlabelled_days=30), datetime.now(UTC)) != {}
    again = frame_message("cam-02", 110)
    ingest_of(site).take([arrived(again)])
    assert frame_rows.state_of(site.catalogue, again.header.frame_id) == "deleted"
    assert not site.blobs.exists(again.header.image_sha256)


def test_without_limits_nothing_is_due_however_old(site: Site) -> None:
    assert find_due(site, datetime.now(UTC) + timedelta(days=36_500)) == []


def test_doing_it_twice_does_it_once(site: Site) -> None:
    chosen = limited(site, unlabelled_days=30)
    assert apply(chosen)
    assert apply(chosen) == {}


def test_the_command_says_what_is_due_and_deletes_only_when_told(site: Site) -> None:
    (site.folder.root / "bowerbird.toml").write_text("[retention]\nunlabelled_days = 30.0\n")
    runner, data = CliRunner(), str(site.folder.root)
    due = json.loads(runner.invoke(app, ["retention", "--data", data, "--json"]).stdout)["due"]
    before = states(site)
    assert due["retention: unlabelled for 30 days"] > 0
    assert states(site) == before
    deleted = json.loads(runner.invoke(app, ["retention", "--yes", "--data", data, "--json"]).stdout)["deleted"]
    assert deleted == due
    assert "no frame is due" in runner.invoke(app, ["retention", "--data", data]).stdout


@pytest.mark.parametrize("text", ["unlabelled_days = 0.0", "unlabeled_days = 3.0", "rejected_days = -1.0"])
def test_a_slip_in_the_limits_stops_the_server_instead_of_keeping_for_ever(tmp_path: Path, text: str) -> None:
    (tmp_path / "bowerbird.toml").write_text(f"[retention]\n{text}\n")
    with pytest.raises(ConfigError):
        load_config(tmp_path)
