"""aimet-onnx: ``QuantizationSimModel`` with the settings of a job, exported as Q/DQ.

``scheme`` (min_max or tf_enhanced), ``symmetric`` (activations), ``steps`` (cle, sequential-mse, adaround with its
iterations), ``clip`` (fused: no quantizer between a layer and its Clip). Without ``scheme``: its defaults.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aimet_onnx
import numpy as np
import onnx
import torch
from aimet_onnx.common import quantsim_config
from aimet_onnx.cross_layer_equalization import equalize_model
from peer_job import Job

DEFAULT_CONFIG = Path(quantsim_config.__file__).parent / "default_config_per_channel.json"


def main() -> None:
    job = Job.read()
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    np.random.seed(job.seed)  # noqa: NPY002 - what aimet itself draws from
    steps: dict[str, Any] = job.settings.get("steps", {})
    feeds = list(job.feeds())
    model = onnx.load(job.model)
    if "cle" in steps:
        equalize_model(model)
    settings = {"dummy_input": feeds[0], "session_options_kwargs": {"intra_op_num_threads": job.threads}}
    if "scheme" in job.settings:
        settings |= {"quant_scheme": job.settings["scheme"], "config_file": str(config_file(job))}
    sim = aimet_onnx.QuantizationSimModel(model, **settings)
    if job.settings.get("clip") == "fused":
        fuse_clip(sim)
    if "sequential-mse" in steps:
        aimet_onnx.apply_seq_mse(sim, feeds)
    if "adaround" in steps:
        aimet_onnx.apply_adaround(sim, feeds, num_iterations=steps["adaround"])
    sim.compute_encodings(feeds)
    activations = "signed" if job.settings.get("symmetric") else "unsigned"
    onnx.save(sim.to_onnx_qdq(prequantize_constants=True, force_activation_as=activations), job.out)


def config_file(job: Job) -> Path:
    """The default per-channel configuration, with symmetric activations if the job says so."""
    config = json.loads(DEFAULT_CONFIG.read_text("utf-8"))
    config["defaults"]["ops"]["is_symmetric"] = str(bool(job.settings.get("symmetric")))
    path = job.out.with_suffix(".config.json")
    path.write_text(json.dumps(config), "utf-8")
    return path


def fuse_clip(sim: Any) -> None:
    """Switch off the quantizers of tensors that only a Clip reads: backends clip before they quantize."""
    readers: dict[str, list[str]] = {}
    for node in sim.model.model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    for name, quantizer in sim.qc_quantize_op_dict.items():
        if readers.get(f"{name}_updated", readers.get(f"{name}_qdq")) == ["Clip"]:
            quantizer.enabled = False


if __name__ == "__main__":
    main()
