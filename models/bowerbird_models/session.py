"""The seam between a detector and what runs its network: one `Session` per runtime.

In: the bytes of an ONNX file, checked, in a constructor of the runtime's own (`onnx_detector.py` and its neighbours). Out: what goes
in and comes out of the network, and a function that runs it on a bound buffer. A session knows nothing of boxes, classes or
pictures: `yolo.py` does all of that, once for every runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Run = Callable[[], "list[NDArray[Any]]"]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a network.

    Args:
        name: as in the file.
        dtype: NumPy's name of the element type ("float32"), or the runtime's where NumPy has none.
        shape: sides; None where the file leaves one open.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}({', '.join('?' if side is None else str(side) for side in self.shape)})"


class Session(Protocol):
    """A network loaded by one runtime. Not thread-safe: one thread owns it."""

    @property
    def runtime(self) -> str:
        """Name and version of what runs the network, for reports ("onnxruntime-cpu 1.32.0")."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What goes in."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What can come out."""
        ...

    def bind(self, tensor: NDArray[Any], outputs: Sequence[str], *, fixed: bool) -> Run:
        """A function that runs the network on what `tensor` holds at that moment.

        Args:
            tensor: C-contiguous, of the input's type and one of its shapes; the caller writes each frame into it.
            outputs: names of the outputs wanted, in the order in which the function returns them.
            fixed: the outputs' shapes depend on nothing but the input's shape, so their buffers may be reused.

        The function's arrays are valid until it is called again. Whatever it raises is the runtime's own exception; the
        detector turns it into a `ModelOutputError`.
        """
        ...

    def close(self) -> None:
        """Free the network and its memory; calling it again does nothing."""
        ...
