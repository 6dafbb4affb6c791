"""What a peer is asked to do, read inside its environment: nothing but NumPy and the standard library here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Job:
    """One configuration of one peer.

    Attributes:
        model: FP32 model, batch axis dynamic.
        single: The same model with a batch of one.
        images: Calibration images (N, C, H, W), float32, preprocessed; memory-mapped.
        input: Name of the model's input.
        out: File to write.
        settings: What the configuration sets, by the peer's own words.
        threads: Threads that it may use.
        seed: Of every random choice.
    """

    model: Path
    single: Path
    images: Array
    input: str
    out: Path
    settings: dict[str, Any]
    threads: int
    seed: int

    @classmethod
    def read(cls) -> Job:
        """The job in the file that the command line names."""
        fields = json.loads(Path(sys.argv[1]).read_text("utf-8"))
        return cls(
            Path(fields["model"]), Path(fields["single"]), np.load(fields["images"], mmap_mode="r"), fields["input"],
            Path(fields["out"]), fields["settings"], fields["threads"], fields["seed"],
        )  # fmt: skip

    def feeds(self, size: int = 1) -> Iterator[dict[str, Array]]:
        """Calibration images by input name, ``size`` at a time."""
        for start in range(0, len(self.images), size):
            yield {self.input: np.array(self.images[start : start + size])}
