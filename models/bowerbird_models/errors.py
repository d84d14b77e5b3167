"""Everything that can be wrong with a model file or with what it emits, as one tree.

Raised by this package only; callers catch `ModelError` and show its message, which says what to do next.
"""

from __future__ import annotations


class ModelError(Exception):
    """Something about a model file, its runtime or its output."""


class RuntimeMissing(ModelError):
    """The software that runs the model is not installed here."""


class AcceleratorMissing(RuntimeMissing):
    """The accelerator or precision that was asked for cannot be had here. Nothing else is used in its place."""


class EngineNotBuilt(RuntimeMissing):
    """Building the model's engine on this device broke a limit or died."""


class NotAModel(ModelError):
    """The file is missing, empty, damaged, or no YOLO in ONNX form."""


class UnsupportedModel(ModelError):
    """A real model, but of a task, layout or form that this version does not run."""


class ModelOutputError(ModelError):
    """The model ran and emitted NaN, infinity or a shape that its metadata does not explain; or it failed while running."""
