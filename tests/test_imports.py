"""What is imported when: `--help` is light, optional packages stay optional, the public names are pinned."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from project_tree import PYPROJECT, modules

from quantlab.cli.main import VERBS

_HEAVY = {"numpy", "onnx", "onnxruntime", "onnxslim", "pandas", "scipy", "llvmlite", "torch", "PIL", "tqdm"}
_OPTIONAL = (
    "tensorrt", "tensorrt_rtx", "pycuda", "torch", "torchvision", "matplotlib", "openvino", "tensorflow", "llvmlite"
)  # fmt: skip

_LOADED_BY = """
import sys
from quantlab.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code
import json
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""

_IMPORT_ALL = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
for name in sys.argv[2:]:
    importlib.import_module(name)
"""

_PUBLIC = {
    "quantlab": """
        TARGETS CalibrateSettings CalibrationTable CompareSettings Comparison DataRequest Degradation DegradationCode
        Execution ExitCode LatencySettings Narrator Policy Precision QuantlabError RecoverSettings Silent TargetProfile
        TaskRequest Variant Verdict build_variants calibrate compare_files evaluate load_policy make_demo open_data
        open_model read_samples recover run_recipe write_calibration write_comparison
    """,
    "quantlab.calibrators": """
        DEFAULT_METHOD INT8_SYMMETRIC METHOD_NAMES SCHEMES UINT8_AFFINE CalibrationCache CalibrationTable Distribution
        Entropy Histogram MeanSquaredError MethodRange MinMax Parameters Percentile Provenance RangeMethod Scheme
        TensorEntry TensorRange check_method clipped_fraction dequantize fake_quantize load_histograms
        mean_squared_errors measure_tensor parameters quantize range_methods save_histograms sqnr_db weight_scales
    """,
    "quantlab.datasets": """
        METADATA_KEY PRESETS SAMPLE_MODELS Batch Color Dataset InputSpec InputStatistics Interpolation Layout Manifest
        ManifestEntry Preprocess Resize ResolvedPreprocess Sample batches load_preprocess open_dataset
        preprocess_from_metadata preprocess_from_table resolve_preprocess sample_data sample_model unpack_samples
        wrap_items
    """,
    "quantlab.reports": "FORMATS Format Renderer Style render",
}


def _python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run away from the project's folder, which would hide the installed package."""
    return subprocess.run(
        [sys.executable, "-P", *arguments], capture_output=True, text=True, cwd=cwd, check=False, timeout=120
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS), ["gate", "plan", "--help"], ["nonsense"]],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    done = _python("-c", _LOADED_BY, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    code, loaded = json.loads(done.stderr.splitlines()[-1])
    assert code == (2 if arguments == ["nonsense"] else 0)
    assert _HEAVY & set(loaded) == set()


def test_everything_imports_without_optional_packages(tmp_path: Path) -> None:
    done = _python("-c", _IMPORT_ALL, ",".join(_OPTIONAL), *modules(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_importing_prints_nothing(tmp_path: Path) -> None:
    done = _python("-c", _IMPORT_ALL, "", *modules(), cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", _PUBLIC)
def test_public_names_are_pinned(name: str) -> None:
    """A name that is added, removed or renamed changes what users may rely on: change CHANGELOG.md as well."""
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [])
    assert sorted(public) == sorted(_PUBLIC[name].split())
    assert [missing for missing in public if not hasattr(module, missing)] == []


def test_module_as_a_program(tmp_path: Path) -> None:
    done = _python("-m", "quantlab", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"quantlab {PYPROJECT['project']['version']}\n")
