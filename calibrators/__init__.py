"""Histograms, range methods, the calibration table and TensorRT's calibration cache."""

from quantlab.calibrators.distribution import Distribution
from quantlab.calibrators.entropy import Entropy
from quantlab.calibrators.error import clipped_fraction, mean_squared_errors, sqnr_db
from quantlab.calibrators.histogram import Histogram, load_histograms, save_histograms
from quantlab.calibrators.measure import measure_tensor
from quantlab.calibrators.methods import DEFAULT_METHOD, METHOD_NAMES, check_method, range_methods
from quantlab.calibrators.minmax import MinMax
from quantlab.calibrators.mse import MeanSquaredError
from quantlab.calibrators.percentile import Percentile
from quantlab.calibrators.protocol import MethodRange, RangeMethod
from quantlab.calibrators.quantize import (
    INT8_SYMMETRIC,
    SCHEMES,
    UINT8_AFFINE,
    Parameters,
    Scheme,
    dequantize,
    fake_quantize,
    parameters,
    quantize,
    weight_scales,
)
from quantlab.calibrators.table import CalibrationTable, Provenance, TensorEntry, TensorRange
from quantlab.calibrators.tensorrt_cache import CalibrationCache

__all__ = [
    "DEFAULT_METHOD",
    "INT8_SYMMETRIC",
    "METHOD_NAMES",
    "SCHEMES",
    "UINT8_AFFINE",
    "CalibrationCache",
    "CalibrationTable",
    "Distribution",
    "Entropy",
    "Histogram",
    "MeanSquaredError",
    "MethodRange",
    "MinMax",
    "Parameters",
    "Percentile",
    "Provenance",
    "RangeMethod",
    "Scheme",
    "TensorEntry",
    "TensorRange",
    "check_method",
    "clipped_fraction",
    "dequantize",
    "fake_quantize",
    "load_histograms",
    "mean_squared_errors",
    "measure_tensor",
    "parameters",
    "quantize",
    "range_methods",
    "save_histograms",
    "sqnr_db",
    "weight_scales",
]
