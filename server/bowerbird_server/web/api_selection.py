"""The JSON API's word on selection: whether choosing pays, and by which rule batches are chosen now.

In: requests that `auth.py` let through. Out: `yield_report`, of the frames that the asking person may see. It changes nothing.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel

from bowerbird_server.web.api import new_router
from bowerbird_server.web.stores import catalogue
from bowerbird_server.yield_report import yield_report

router = new_router()


class Estimate(BaseModel):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


class Comparison(BaseModel):
    """Changed boxes of chosen frames and of the control, by label or by megabyte."""

    chosen: float | None
    control: float | None
    gain: Estimate | None


class PolicyVerdict(BaseModel):
    """Whether the policy is better than its control."""

    word: str
    why: str
    chosen_frames: int
    control_frames: int
    per_label: Comparison
    per_megabyte: Comparison


class StrategyYield(BaseModel):
    """The share of a strategy's frames that labellers changed."""

    strategy: str
    frames: int
    changed: Estimate
    weight: float


class AccuracyGain(BaseModel):
    """What a model gained for what its data set had more."""

    model: str
    labels: int
    megabytes: float
    gain: float
    per_label: Estimate | None
    per_megabyte: Estimate | None


class FallenBack(BaseModel):
    """Since when and why scores are not asked."""

    since: str
    why: str


class Yield(BaseModel):
    """Whether choosing pays."""

    by: str
    fallen_back: FallenBack | None
    verdict: PolicyVerdict
    strategies: list[StrategyYield]
    accuracy: list[AccuracyGain]


@router.get("/yield", response_model=Yield, summary="Whether choosing frames pays, against frames taken by chance")
def get_yield(request: Request) -> dict[str, Any]:
    return yield_report(catalogue(request))
