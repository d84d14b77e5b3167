"""The little of CUDA that feeding a network takes, over the driver's own library: memory, copies, one stream.

In: nothing but `libcuda.so.1`, which every NVIDIA driver brings under that name, on a Jetson as on a PC. Out: `Cuda`. The driver's
interface was chosen over the toolkit's (libcudart): its file has one name whatever the toolkit's version, and TensorRT, which
uses the toolkit's, works in the same primary context. Every return code is checked. It runs no kernels.
Source: CUDA Driver API reference, https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

LIBRARY = "libcuda.so.1"
_NAME_BYTES = 256
_STREAM_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*

# Arguments by function; all return a CUresult (int), 0 for success. A CUdevice is an int, a CUdeviceptr 64 bits, handles are pointers.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
}


class CudaError(Exception):
    """The driver is not there, or a call of it failed."""


@dataclass(frozen=True)
class Gpu:
    """The first GPU: its name, compute capability ("8.7") and the CUDA version that the driver speaks ("12.6")."""

    name: str
    compute_capability: str
    driver: str


class Cuda:
    """The driver, its first GPU and that GPU's primary context.

    Args:
        library: the loaded driver; None loads `LIBRARY`.

    Raises:
        CudaError: no driver, no GPU, or a driver that does not start.
    """

    def __init__(self, library: ctypes.CDLL | None = None) -> None:
        self._library = _load() if library is None else library
        _declare(self._library)
        self._call("cuInit", 0)
        count, version, device = c_int(), c_int(), c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if count.value < 1:
            raise CudaError("the driver sees no GPU")
        self._call("cuDriverGetVersion", ctypes.byref(version))
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, device)
        major, minor = (self._attribute(which, device) for which in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR))
        driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
        self.gpu = Gpu(name.value.decode("utf-8", "replace"), f"{major}.{minor}", driver)
        self._context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.close = weakref.finalize(self, _release, self._library, "cuDevicePrimaryCtxRelease_v2", device)

    def use(self) -> None:
        """Make the GPU current in the calling thread; needed before anything below, in each thread."""
        self._call("cuCtxSetCurrent", self._context)

    def stream(self) -> Resource:
        """A stream of work of its own."""
        handle = c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), _STREAM_NON_BLOCKING)
        return Resource(self, "cuStreamDestroy_v2", handle.value or 0)

    def allocate(self, size_bytes: int) -> Resource:
        """Memory on the GPU."""
        pointer = c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), max(1, size_bytes))
        return Resource(self, "cuMemFree_v2", pointer.value)

    def allocate_host(self, shape: Sequence[int], dtype: str) -> NDArray[Any]:
        """An array in page-locked memory, which the GPU copies to without a detour; freed with the last view of it."""
        count, kind = int(np.prod(shape)), np.dtype(dtype)
        size_bytes = max(1, count * kind.itemsize)
        pointer = c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(pointer), size_bytes, 0)
        memory: Any = (ctypes.c_ubyte * size_bytes).from_address(pointer.value or 0)
        memory.owner = Resource(self, "cuMemFreeHost", pointer.value or 0)
        array: NDArray[Any] = np.frombuffer(memory, kind, count=count).reshape(tuple(shape))
        return array

    def to_device(self, device: Resource, array: NDArray[Any], stream: Resource) -> None:
        """Copy a C-contiguous array to the GPU, in the stream's order."""
        self._call("cuMemcpyHtoDAsync_v2", device.value, array.ctypes.data, array.nbytes, stream.value)

    def to_host(self, array: NDArray[Any], device: Resource, stream: Resource) -> None:
        """Copy from the GPU into an array, in the stream's order; it is there after `synchronise`."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, device.value, array.nbytes, stream.value)

    def synchronise(self, stream: Resource) -> None:
        """Wait until everything in the stream is done."""
        self._call("cuStreamSynchronize", stream.value)

    def _attribute(self, which: int, device: c_int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code != 0:
            raise CudaError(f"{function} failed: {_error_name(self._library, code)}")

    def _free(self, function: str, value: int) -> None:
        self._library.cuCtxSetCurrent(self._context)  # whichever thread this is
        _release(self._library, function, value)


class Resource:
    """A pointer or handle of the driver's, freed once: by `free` or with the object. It keeps its `Cuda` until then."""

    def __init__(self, cuda: Cuda, free: str, value: int) -> None:
        self.value = value
        self.free = weakref.finalize(self, cuda._free, free, value)


def find_gpu() -> Gpu:
    """The first GPU.

    Raises:
        CudaError: no driver, no GPU, or a driver that does not start.
    """
    cuda = Cuda()
    cuda.close()
    return cuda.gpu


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise CudaError(f"there is no NVIDIA driver ({LIBRARY} does not load)") from error


def _declare(library: ctypes.CDLL) -> None:
    for name, arguments in SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise CudaError(f"the NVIDIA driver has no {name}; it is too old") from error
        function.argtypes, function.restype = arguments, c_int


def _error_name(library: ctypes.CDLL, code: int) -> str:
    name = c_char_p()
    library.cuGetErrorName(code, ctypes.byref(name))
    return name.value.decode() if name.value else f"error {code}"


def _release(library: ctypes.CDLL, function: str, value: Any) -> None:
    code = getattr(library, function)(value)
    if code != 0:  # at the end of a process the driver may have gone first
        logger.debug("%s failed: %s", function, _error_name(library, code))
