"""Which values the tensors of a network take on the site's own pictures: the ranges that int8 divides into 256 steps.

In: a float ONNX model and pictures, one after the other. Out: a low and a high bound for each tensor. Inner tensors lose the rarest
hundred-thousandth of their values to a finer step; what leaves the last layers keeps its whole range, because the rarest of *those*
values are the most confident detections. It holds one histogram a tensor, so memory does not grow with the number of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_server.errors import BadInput
from bowerbird_server.quantisation.onnx_graph import Graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERCENTILE = 99.999
SILU_FLOOR = -8.0
"""Below it x * sigmoid(x) is within 0.003 of zero: what SiLU makes of it needs no steps of its own."""
_BINS = 4096
_SAMPLES = 16_384  # values of one tensor that one picture adds to the histogram


class Histogram:
    """Counts of values in `_BINS` equal bins from -reach to reach; the reach doubles when values exceed it."""

    def __init__(self) -> None:
        self.reach = 2.0**-20
        self.counts = np.zeros(_BINS, np.int64)
        self.low, self.high = np.inf, -np.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Count finite values; of a large array an even sample, with an odd step that meets all columns. The bounds are exact."""
        flat = values.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        while max(-low, high) > self.reach:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[_BINS // 4 : _BINS - _BINS // 4] = pairs
            self.reach *= 2
        sample = flat[:: flat.size // _SAMPLES | 1]
        places = ((sample + self.reach) * (_BINS / (2 * self.reach))).astype(np.int64)
        self.counts += np.bincount(np.clip(places, 0, _BINS - 1), minlength=_BINS)

    def percentile_bounds(self, percent: float) -> tuple[float, float]:
        """Bounds that leave out (100 - percent) % of the values, half of them at each end; never wider than the values."""
        share = np.cumsum(self.counts) / max(1, self.counts.sum())
        tail = (100 - percent) / 200
        edges = np.linspace(-self.reach, self.reach, _BINS + 1)
        low = float(edges[np.searchsorted(share, tail, side="right")])
        high = float(edges[min(_BINS, int(np.searchsorted(share, 1 - tail, side="left")) + 1)])
        return max(low, self.low), min(high, self.high)


def activation_ranges(
    model: Any,
    pictures: Iterable[NDArray[np.float32]],
    *,
    threads: int = 1,
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[str, tuple[float, float]]:
    """Low and high bound of every float tensor that a node of the graph makes or that is its input.

    Args:
        model: float, its shapes inferred.
        pictures: network inputs, (1, 3, H, W) in [0, 1].
        threads: of ONNX Runtime.
        on_progress: called with the number of pictures done.

    Raises:
        BadInput: no pictures, or the model emits NaN or infinity on one of them.
    """
    import onnxruntime

    names = float_tensors(model)
    watched = type(model)()
    watched.CopyFrom(model)
    already = {output.name for output in model.graph.output}
    for name in names:
        if name not in already:
            watched.graph.output.add().name = name
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0].name
    found = {name: Histogram() for name in names}
    count = 0
    for count, picture in enumerate(pictures, start=1):
        for name, values in zip(names, session.run(names, {image: picture}), strict=True):
            if values.size == 0:
                continue
            if not np.isfinite(values).all():
                raise BadInput(
                    "the model emits NaN or infinity on the site's frames, so it cannot be quantised; export it again"
                )
            found[name].add(values)
        on_progress(count)
    if not count:
        raise BadInput("there are no frames to calibrate on; label frames of the training split first")
    whole = _leaving(model)
    ranges = {
        name: (each.low, each.high) if name in whole else each.percentile_bounds(PERCENTILE)
        for name, each in found.items()
        if np.isfinite(each.low)
    }
    ranges[image] = (0.0, 1.0)  # bytes over 255, whatever the darkest and brightest pixel of the calibration frames was
    return _floored(model, ranges)


def float_tensors(model: Any) -> list[str]:
    """Names of the float32 tensors that nodes make, by the model's inferred shapes; constants apart."""
    graph = Graph(model.graph)
    typed = {
        value.name: value.type.tensor_type.elem_type
        for value in [*model.graph.value_info, *model.graph.output]
        if value.type.HasField("tensor_type")
    }
    made = [name for node in model.graph.node if node.op_type != "Constant" for name in node.output]
    return [name for name in made if typed.get(name) == 1 and graph.constant(name) is None]


def _leaving(model: Any) -> set[str]:
    """Tensors that only the decoding reads: the last layers' own numbers."""
    graph = Graph(model.graph)
    decoding = graph.decoding()
    return {
        name
        for node in model.graph.node
        for name in node.output
        if graph.readers(name) and all(reader.name in decoding for reader in graph.readers(name))
    }


def _floored(model: Any, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Ranges whose lower end is cut where nothing but SiLU reads the tensor."""
    graph = Graph(model.graph)
    return {
        name: (max(low, SILU_FLOOR), high) if high > SILU_FLOOR and _only_silu_reads(graph, name) else (low, high)
        for name, (low, high) in ranges.items()
    }


def _only_silu_reads(graph: Graph, name: str) -> bool:
    readers: Sequence[Any] = graph.readers(name)
    if len(readers) != 2 or {reader.op_type for reader in readers} != {"Sigmoid", "Mul"}:
        return False
    sigmoid, product = sorted(readers, key=lambda reader: str(reader.op_type), reverse=True)
    return set(product.input) == {name, sigmoid.output[0]}
