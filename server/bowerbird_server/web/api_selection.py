"""The JSON API's word on selection and labels: whether choosing pays, which labels somebody should look at again.

In: requests that `auth.py` let through. Out: `yield_report` and second looks, of the frames that the asking person may see. It changes
nothing: a second look is answered by a label.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel

from bowerbird_server.batches.yield_report import yield_report
from bowerbird_server.catalogue import second_looks
from bowerbird_server.web.api import Limit, new_router
from bowerbird_server.web.stores import catalogue, principal_of

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
    """The share of a strategy's frames that labellers changed, and changed boxes per label and per megabyte."""

    strategy: str
    frames: int
    changed: Estimate
    weight: float
    per_label: Estimate | None
    per_megabyte: Estimate | None


class EditRate(BaseModel):
    """Precision and recall of pre-labels on the frames of a role, by what labellers did to them."""

    role: str
    frames: int
    precision: Estimate | None
    recall: Estimate | None


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
    edits: list[EditRate]
    accuracy: list[AccuracyGain]


@router.get("/yield", response_model=Yield, summary="Whether choosing frames pays, against frames taken by chance")
def get_yield(request: Request) -> dict[str, Any]:
    return yield_report(catalogue(request))


class SecondLook(BaseModel):
    """A label that is to be looked at again; label the frame to answer. A blind one is to be answered without seeing the label."""

    id: str
    frame: str
    kind: str
    blind: bool
    why: str
    asked_at: str
    author: str
    camera: str | None


class SecondLooks(BaseModel):
    """Those that the asking person can answer, odd labels first."""

    items: list[SecondLook]


class Agreement(BaseModel):
    """How far an author agrees with others; about whose label was looked at, for `gold` about who answered."""

    author: str
    kind: str
    looks: int
    agreement: float
    agreed: Estimate


class LabelQuality(BaseModel):
    """How far labels can be trusted."""

    items: list[Agreement]


@router.get("/second-looks", response_model=SecondLooks, summary="Labels that you should look at again")
def get_second_looks(request: Request, limit: Limit = 100) -> dict[str, Any]:
    rows = second_looks.open_for(catalogue(request), principal_of(request).name, limit)
    return {"items": [{**row, "blind": row["kind"] in second_looks.BLIND} for row in rows]}


@router.get("/label-quality", response_model=LabelQuality, summary="How far those who label agree with each other")
def get_label_quality(request: Request) -> dict[str, Any]:
    return {"items": second_looks.report(catalogue(request))}
