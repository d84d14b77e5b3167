"""The control: as many labels as the loop used, picked at random from what the cameras saw, with the same training.

In: the founding of the demo site and the frames seen. Out: a model's evaluation on the same held-out frames. It runs in a site of
its own through the same import, snapshot, training and evaluation, so the picks are the only difference.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue import training as run_rows
from bowerbird_server.config import ServerConfig
from bowerbird_server.demo.founding import ACTOR, FirstModel, found
from bowerbird_server.demo.world import StreamFrame, World, write_yolo
from bowerbird_server.errors import ServerError
from bowerbird_server.site import Site
from bowerbird_server.training.dataset_import import import_dataset
from bowerbird_server.training.snapshot import take_snapshot
from bowerbird_server.training.training_runs import carry_out, queue_run


@dataclass(frozen=True)
class ControlResult:
    """What random picks gave. `metrics` is an `Evaluation` as JSON; `error` says why there is none."""

    labels: int
    metrics: dict[str, Any]
    error: str = ""


class Control(threading.Thread):
    """Trains the control beside the loop's last round, on the machine's other core.

    Args:
        data: a data folder of its own, made anew.
        config: of the demo site.
        founding: the YOLO data set with the first and the held-out frames.
        stream: every frame that the cameras could have sent.
        labels: how many of them to pick.
        seed: of the picks.
    """

    def __init__(
        self,
        data: Path,
        config: ServerConfig,
        world: World,
        founding: Path,
        first: FirstModel,
        stream: list[StreamFrame],
        labels: int,
        seed: int,
    ) -> None:
        super().__init__(name="control", daemon=True)
        self._data, self._config, self._world = data, config, world
        self._founding, self._first = founding, first
        self._stream, self._labels, self._seed = stream, labels, seed
        self.result: ControlResult | None = None
        self.progress = (0, 0)

    def run(self) -> None:
        try:
            self.result = self._train()
        except ServerError as error:
            self.result = ControlResult(self._labels, {}, str(error))

    def _train(self) -> ControlResult:
        shutil.rmtree(self._data, ignore_errors=True)
        picked = random.Random(self._seed).sample(self._stream, min(self._labels, len(self._stream)))  # noqa: S311 - no secret
        with Site.open(self._data) as opened:
            site = Site(opened.folder, self._config, opened.catalogue, opened.blobs)
            import_dataset(site, self._founding / "data.yaml", groups=self._founding / "groups.csv", actor=ACTOR)
            found(site, self._first, take_snapshot(site.catalogue, site.blobs, holdout_share=0.0, actor=ACTOR))
            folder = self._data / "picked"
            write_yolo(self._world.pictures(picked), self._world.class_names, folder, lambda: None)
            import_dataset(site, folder / "data.yaml", groups=folder / "groups.csv", actor=ACTOR)
            dataset = take_snapshot(site.catalogue, site.blobs, holdout_share=0.0, actor=ACTOR)
            run_id = queue_run(site, dataset, self._config.loop.training, ACTOR)
            row = carry_out(site, run_rows.run(site.catalogue, run_id), self._on_progress)
            if row["state"] not in ("promoted", "rejected"):
                return ControlResult(len(picked), {}, row["error"] or row["state"])
            model = model_rows.model(site.catalogue, json.loads(row["result"])["model"])
            return ControlResult(len(picked), json.loads(model["metrics"]))

    def _on_progress(self, stage: str, done: int, total: int) -> None:
        if stage == "training":
            self.progress = (done, total)
