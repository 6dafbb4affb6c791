"""What a model asks for on each of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from quantlab.errors import DataError

_CHANNELS = (1, 3, 4)


class Layout(StrEnum):
    """Order of the axes of an image batch; one sample has the same order without N."""

    NCHW = "nchw"
    NHWC = "nhwc"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Name in the graph.
        shape: Shape of one sample, **without** the batch axis; None where a dimension is dynamic.
        dtype: NumPy name of the dtype, such as ``float32``.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"

    @property
    def is_image(self) -> bool:
        """Whether the input can hold an image: three axes, one of which may be the channels."""
        return len(self.shape) == 3

    @property
    def layout(self) -> Layout:
        """NHWC if only the last axis can be channels (1, 3 or 4), else NCHW."""
        if self.is_image and self.shape[-1] in _CHANNELS and self.shape[0] not in _CHANNELS:
            return Layout.NHWC
        return Layout.NCHW

    @property
    def channels(self) -> int | None:
        """Number of channels of an image input; None if dynamic."""
        return self.shape[0 if self.layout is Layout.NCHW else -1] if self.is_image else None

    @property
    def size(self) -> tuple[int | None, int | None]:
        """Height and width of an image input; None where dynamic."""
        if not self.is_image:
            return None, None
        first = 1 if self.layout is Layout.NCHW else 0
        return self.shape[first], self.shape[first + 1]

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        """The NumPy dtype.

        Raises:
            DataError: If NumPy knows no dtype of that name.
        """
        try:
            return np.dtype(self.dtype)
        except TypeError:
            pass
        try:  # bfloat16 and the 8-bit floats become known to NumPy once ml_dtypes, which onnx needs, is imported.
            import ml_dtypes

            extended: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, self.dtype))
            return extended
        except (ImportError, AttributeError, TypeError):
            raise DataError(
                f"input {self.name!r} has a dtype that no data can be made for",
                got=self.dtype,
                expected="a NumPy dtype",
            ) from None

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a sample of ``shape`` (no batch axis) fits; a dynamic dimension takes any size."""
        return len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{format_shape(self.shape)} {self.dtype}"


def format_shape(shape: tuple[int | None, ...]) -> str:
    """``(3, 224, ?)``: a shape for people, with ``?`` for dynamic dimensions."""
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
