"""The API against its own description: generated requests, right and wrong ones; no crash, no answer that is not described."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from bowerbird_server.batches.batch import build_batch
from bowerbird_server.web.app import create_app
from bowerbird_testing.scene_frames import SceneSite

TOKEN = "fuzz-test-token-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    site = SceneSite(tmp_path_factory.mktemp("fuzz") / "data")
    site.send(0, 20, 40)
    build_batch(site.cat, frames=2)
    yield create_app(site.folder, TOKEN)
    site.close()


@pytest.fixture(scope="module")
def described(app: FastAPI) -> Any:
    return schemathesis.openapi.from_asgi("/api/v1/openapi.json", app, headers=BEARER)


# A description knows neither class list nor catalogue: a label whose boxes lie outside of its image is well-formed, and refused.
schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(max_examples=20, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_address_answers_as_described_whatever_it_is_asked(case: schemathesis.Case) -> None:
    """Twenty requests an address, the same in every run: neither a status nor a shape that the description does not have."""
    case.call_and_validate(headers=BEARER, excluded_checks=[positive_data_acceptance])
