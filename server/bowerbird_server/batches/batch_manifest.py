"""What there is to say of how a batch was chosen, as one JSON blob that never changes: enough to choose it again and to be audited by.

In: the pool, the policy, who looked, what was chosen. Out: a JSON-able dictionary, and its bytes. It is written before the batch opens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bowerbird_server.batches.batch_choice import BatchPolicy, Candidate, Chosen

SCHEMA = 1


def describe(
    pool: Sequence[Candidate],
    chosen: Sequence[Chosen],
    policy: BatchPolicy,
    *,
    frames: int,
    looked: Mapping[str, str],
    labelled: NDArray[np.float32] | None,
    evidence: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest.

    Args:
        pool: the candidates.
        chosen: the choice.
        policy: the rules, with the seed of the lots.
        frames: how many were asked for.
        looked: digest of the `champion` and the `teacher` that looked, "" for none.
        labelled: embeddings that the choice was compared with; only their digest is kept.
        evidence: what put this rule in force: the fall-back if any, weights of strategies, sides of scenes.
    """
    by_id = {candidate.frame_id: candidate for candidate in pool}
    return {
        "schema": SCHEMA,
        "policy": dataclasses.asdict(policy),
        "frames_asked_for": frames,
        "looked": dict(looked),
        "compared_with": "" if labelled is None else hashlib.sha256(np.asarray(labelled, "<f4").tobytes()).hexdigest(),
        "evidence": dict(evidence),
        "pool": {"frames": len(pool), "digest": pool_digest(pool)},
        "chosen": [
            {
                "frame": one.frame_id,
                "image": by_id[one.frame_id].blob,
                "role": one.role,
                "probability": one.probability,
                "inclusion_probability": by_id[one.frame_id].inclusion_probability,
                "arm": by_id[one.frame_id].arm,
                "score": by_id[one.frame_id].score,
                "cost": by_id[one.frame_id].cost,
                "why": one.why,
            }
            for one in chosen
        ],
    }


def pool_digest(pool: Sequence[Candidate]) -> str:
    """SHA-256 over what the choice knew of every candidate, whatever their order; 64 hex digits."""
    digest = hashlib.sha256()
    for one in sorted(pool, key=lambda candidate: candidate.frame_id):
        known = [
            *(getattr(one, field.name) for field in dataclasses.fields(one) if field.name != "embedding"),
            "" if one.embedding is None else hashlib.sha256(np.asarray(one.embedding, "<f4").tobytes()).hexdigest(),
        ]
        digest.update(json.dumps(known).encode() + b"\n")
    return digest.hexdigest()


def encode(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's bytes; equal manifests have equal ones."""
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
