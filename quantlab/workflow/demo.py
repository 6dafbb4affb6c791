"""The demo folder: bundled models, images, recipes and a policy."""

from __future__ import annotations

import shutil
from pathlib import Path

from quantlab.datasets import sample_model, unpack_samples
from quantlab.errors import ConfigError
from quantlab.files import replacing, write_text

RECIPES = {"quantlab.toml": "fashion-resnet", "mobilenet.toml": "fashion-mobilenet"}

_RECIPE = """\
# What `{command}` does: calibrate -> build -> compare -> gate.
schema = 1

[model]
file = "{model}.onnx"          # its preprocessing travels in its metadata

[calibrate]
data = "calibration"           # 512 training images of Fashion-MNIST, a folder a class
method = "{method}"

[build]
precisions = ["fp32", "tf32", "fp16", "int8"]
target = "{target}"{comment}

[compare]
data = "evaluation"            # 2,000 test images, none of them among the training images
latency-seconds = 5

[gate]
policy = "policy.toml"

[run]
out = "{out}"
threads = 1                    # as many as there are processors make latency unsteady: docs/latency.md
"""

_POLICY = """\
# A release policy. Each check is judged by its confidence bound: PASS, FAIL, or INCONCLUSIVE with the images needed.
schema = 1

[gate]
alpha = 0.05                   # one-sided: 95 % confidence
allow = ["method-fallback"]    # range methods may fall back to min-max; everything else that degrades is fatal

[[check]]
id = "accuracy.top1"           # INT8 may lose at most half a percentage point of top-1, paired on the same images
metric = "top1"
candidate = "int8"
claim = "non-inferior"
margin = { absolute_pp = 0.5 }
min_samples = 500

[[check]]
id = "answers.agreement"       # and gives FP32's answer on at least 985 of 1,000 images
metric = "agreement"
candidate = "int8"
limit = 98.5

[[check]]
id = "numerics.fp16"           # FP16 is close to FP32 number by number
metric = "sqnr_db"
candidate = "fp16"
limit = 40.0

[[check]]
id = "precision.proved"        # every variant is in the precision that its name says
metric = "precision_proved"
"""


def is_demo(folder: Path) -> bool:
    """Whether ``folder`` holds a complete demo."""
    files = [*RECIPES, *(f"{model}.onnx" for model in RECIPES.values()), "policy.toml"]
    return all((folder / name).exists() for name in [*files, "calibration", "evaluation"])


def make_demo(folder: Path, *, force: bool) -> tuple[Path, ...]:
    """Create the demo in ``folder``.

    Returns:
        The files and folders made.

    Raises:
        ConfigError: If ``folder`` is not empty and ``force`` is not set.
        OutputError: If it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder", hint="name another")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ConfigError(f"folder {folder} is not empty", hint="name another, or overwrite with --force")
    unpack_samples(folder, force=force)
    made = [folder / "calibration", folder / "evaluation"]
    for recipe, model in RECIPES.items():
        path = folder / f"{model}.onnx"
        with replacing(path) as temporary:
            shutil.copyfile(sample_model(model), temporary)
        naive = model == "fashion-mobilenet"
        text = _RECIPE.format(
            command=f"quantlab run {recipe}" if naive else "quantlab run",
            model=model,
            method="minmax" if naive else "mse",
            out="results-mobilenet" if naive else "results",
            target="tensorrt" if naive else "onnxruntime",
            comment="            # symmetric INT8 by TensorRT's rules; ONNX Runtime emulates it"
            if naive
            else "         # uint8 activations: what ONNX Runtime's CPU kernels are fast at",
        )
        write_text(folder / recipe, text)
        made += [path, folder / recipe]
    write_text(folder / "policy.toml", _POLICY)
    return (*made, folder / "policy.toml")
