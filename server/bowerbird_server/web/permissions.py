"""Which address of the web needs which role: one table. A route that is not in it is reached by nobody, and a test fails.

In: a method and a path. Out: what it needs. Who asks is found out in `auth.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from starlette.routing import compile_path

from bowerbird_server.access.roles import Principal, Role


@dataclass(frozen=True)
class Need:
    """What an address asks for.

    Args:
        role: the least one; None: nobody has to say who they are.
        everywhere: only for those who are let into all sites, since it changes what all sites share.
    """

    role: Role | None
    everywhere: bool = False

    def refusal(self, principal: Principal) -> str:
        """Why somebody may not, "" when they may."""
        if self.role is None:
            return ""
        if principal.role < self.role:
            return f"this needs the role {self.role.word}, and {principal.name} is {principal.role.word}; ask an administrator"
        if self.everywhere and not principal.sites.everywhere:
            return f"this changes what all sites share, and {principal.name} is let into {principal.sites.words()} only"
        return ""


_OPEN = Need(None)
_METRICS, _VIEWER, _LABELLER = Need(Role.METRICS), Need(Role.VIEWER), Need(Role.LABELLER)
_OPERATOR, _RELEASES, _ADMINISTRATOR = Need(Role.OPERATOR), Need(Role.RELEASE_MANAGER), Need(Role.ADMINISTRATOR)

# (method, path of the route) -> what it needs.
NEEDS: Mapping[tuple[str, str], Need] = MappingProxyType(
    {
        # The way in, and what it shows before anybody is in.
        ("GET", "/login"): _OPEN,
        ("POST", "/login"): _OPEN,
        ("GET", "/login/oidc"): _OPEN,
        ("GET", "/login/oidc/callback"): _OPEN,
        ("GET", "/static/{file}"): _OPEN,
        ("GET", "/api/v1/health"): _OPEN,
        # Any session, whatever its role.
        ("POST", "/logout"): _METRICS,
        ("GET", "/session"): _METRICS,
        ("GET", "/metrics"): _METRICS,
        # Looking.
        ("GET", "/"): _VIEWER,
        ("GET", "/fragments/dashboard"): _VIEWER,
        ("GET", "/frames"): _VIEWER,
        ("GET", "/frames/{frame_id}"): _VIEWER,
        ("GET", "/models/{digest}"): _VIEWER,
        ("GET", "/api/v1/openapi.json"): _VIEWER,
        ("GET", "/api/v1/summary"): _VIEWER,
        ("GET", "/api/v1/devices"): _VIEWER,
        ("GET", "/api/v1/frames"): _VIEWER,
        ("GET", "/api/v1/frames/{frame_id}"): _VIEWER,
        ("GET", "/api/v1/frames/{frame_id}/image"): _VIEWER,
        ("GET", "/api/v1/queue"): _VIEWER,
        ("GET", "/api/v1/classes"): _VIEWER,
        ("GET", "/api/v1/batches"): _VIEWER,
        ("GET", "/api/v1/models"): _VIEWER,
        ("GET", "/api/v1/models/{digest}"): _VIEWER,
        ("GET", "/api/v1/datasets"): _VIEWER,
        ("GET", "/api/v1/runs"): _VIEWER,
        ("GET", "/api/v1/rollouts"): _VIEWER,
        ("GET", "/api/v1/events"): _VIEWER,
        ("GET", "/api/v1/yield"): _VIEWER,
        ("GET", "/selection"): _VIEWER,
        ("GET", "/second-looks"): _LABELLER,
        ("GET", "/api/v1/second-looks"): _LABELLER,
        ("GET", "/api/v1/label-quality"): _OPERATOR,
        ("GET", "/campaigns"): _VIEWER,
        ("GET", "/field"): _VIEWER,
        ("GET", "/api/v1/field"): _VIEWER,
        ("GET", "/api/v1/drift"): _VIEWER,
        ("GET", "/devices/{device}/config"): _VIEWER,
        ("GET", "/api/v1/devices/{device}/config"): _VIEWER,
        ("GET", "/api/v1/devices/{device}/config/history"): _VIEWER,
        ("GET", "/api/v1/config-changes"): _VIEWER,
        ("GET", "/api/v1/campaigns"): _VIEWER,
        ("GET", "/api/v1/frames/{frame_id}/fetch"): _VIEWER,
        ("GET", "/api/v1/devices/{device}/unsent"): _VIEWER,
        ("GET", "/api/v1/campaigns/{campaign}"): _VIEWER,
        # Labelling.
        ("GET", "/review"): _LABELLER,
        ("POST", "/api/v1/frames/{frame_id}/open"): _LABELLER,
        ("POST", "/api/v1/frames/{frame_id}/label"): _LABELLER,
        # More of a frame costs the device's link, within its own daily cap.
        ("POST", "/frames/{frame_id}/fetch"): _LABELLER,
        ("POST", "/api/v1/frames/{frame_id}/fetch"): _LABELLER,
        # Who belongs to the fleet. Shutting out must not wait for anybody.
        ("GET", "/devices"): _VIEWER,
        ("GET", "/api/v1/alarms"): _VIEWER,
        ("POST", "/devices/{device}/{step}"): _OPERATOR,
        ("POST", "/api/v1/devices/{device}/approve"): _OPERATOR,
        ("POST", "/api/v1/devices/{device}/suspend"): _OPERATOR,
        ("POST", "/api/v1/devices/{device}/resume"): _OPERATOR,
        ("POST", "/api/v1/devices/{device}/retire"): _OPERATOR,
        # The site's work. The class list is one for all sites.
        ("POST", "/api/v1/batches"): _OPERATOR,
        ("POST", "/api/v1/classes"): Need(Role.OPERATOR, everywhere=True),
        # What devices of one's own sites are wished to do. A campaign's quota is one for the fleet.
        ("POST", "/api/v1/config-changes"): _OPERATOR,
        ("POST", "/api/v1/config-changes/{change}/{step}"): _OPERATOR,
        ("POST", "/api/v1/campaigns"): Need(Role.OPERATOR, everywhere=True),
        ("POST", "/api/v1/campaigns/{campaign}/stop"): Need(Role.OPERATOR, everywhere=True),
        # Stopping is an operator's too: it must not wait for a release manager.
        ("POST", "/api/v1/rollouts/{rollout}/pause"): _OPERATOR,
        ("POST", "/api/v1/rollouts/{rollout}/abort"): _OPERATOR,
        ("POST", "/api/v1/rollouts"): _RELEASES,
        ("POST", "/api/v1/rollouts/{rollout}/approve"): _RELEASES,
        ("POST", "/api/v1/rollouts/{rollout}/resume"): _RELEASES,
        # Who did what, and who saw what.
        ("GET", "/api/v1/audit"): _ADMINISTRATOR,
        ("GET", "/api/v1/sights"): _ADMINISTRATOR,
    }
)

_PATTERNS = tuple((method, compile_path(path)[0], need) for (method, path), need in NEEDS.items())


def needs_of(path: str) -> Mapping[str, Need]:
    """What a path needs by method; empty when there is nothing at it."""
    return {method: need for method, pattern, need in _PATTERNS if pattern.match(path)}
