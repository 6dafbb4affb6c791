"""Data sets: sources of samples, preprocessing, manifests, and the bundled sample data.

Importing this package does not import Pillow, torch or pandas; they are imported where they are used.
"""

from quantlab.datasets.batches import Batch, batches
from quantlab.datasets.geometry import Interpolation
from quantlab.datasets.inputs import InputSpec, Layout
from quantlab.datasets.loading import open_dataset, wrap_items
from quantlab.datasets.manifest import Manifest, ManifestEntry
from quantlab.datasets.preprocess import Color, Preprocess, Resize
from quantlab.datasets.presets import PRESETS
from quantlab.datasets.protocol import Dataset, InputStatistics, Sample
from quantlab.datasets.resolution import (
    METADATA_KEY,
    ResolvedPreprocess,
    load_preprocess,
    preprocess_from_metadata,
    preprocess_from_table,
    resolve_preprocess,
)
from quantlab.datasets.samples import SAMPLE_MODELS, sample_data, sample_model, unpack_samples

__all__ = [
    "METADATA_KEY",
    "PRESETS",
    "SAMPLE_MODELS",
    "Batch",
    "Color",
    "Dataset",
    "InputSpec",
    "InputStatistics",
    "Interpolation",
    "Layout",
    "Manifest",
    "ManifestEntry",
    "Preprocess",
    "Resize",
    "ResolvedPreprocess",
    "Sample",
    "batches",
    "load_preprocess",
    "open_dataset",
    "preprocess_from_metadata",
    "preprocess_from_table",
    "resolve_preprocess",
    "sample_data",
    "sample_model",
    "unpack_samples",
    "wrap_items",
]
