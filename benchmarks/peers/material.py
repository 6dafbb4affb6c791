"""What all get: one FP32 model each, the same preprocessed images, and the FP32 results to be compared with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

from quantlab import DataRequest, Silent, open_data, open_model
from quantlab.datasets import Dataset, batches
from quantlab.files import write_text
from quantlab.graph.model import model_inputs, open_session, save_model

BATCH = 16


@dataclass(frozen=True, slots=True)
class Source:
    """A model and its images, as the user names them.

    Attributes:
        name: Of the model.
        model: ONNX file.
        calibration: Images to calibrate with.
        evaluation: Images that calibration has not seen, labelled or not.
        few: Calibration images of configurations that take few.
        images: Calibration images of the others.
        evaluated: Evaluation images at most.
        preprocess: Preset or file; None if the model states it.
    """

    name: str
    model: Path
    calibration: str
    evaluation: str
    few: int
    images: int
    evaluated: int | None
    preprocess: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What was prepared in a folder.

    Attributes:
        input: Name of the model's input.
        calibration: Calibration images by `FEW` and `ALL`.
        evaluation: Evaluation images.
        labelled: Whether they all have labels.
        sha256: Of the source model.
    """

    input: str
    calibration: dict[str, int]
    evaluation: int
    labelled: bool
    sha256: str


def prepare_material(source: Source, folder: Path, threads: int) -> Facts:
    """Write, unless there from the same source: models, images (``.npy``), labels and FP32 logits.

    ``model.onnx`` is the graph that quantlab prepares: batch normalizations and constants folded, shapes inferred, the
    batch axis dynamic. ``single.onnx`` is the same with a batch of one. Images are float32, after preprocessing.
    """
    asked = json.dumps({**asdict(source), "model": str(source.model)}, sort_keys=True)
    stamp = folder / "facts.json"
    if stamp.is_file():
        found = json.loads(stamp.read_text("utf-8"))
        if found["asked"] == asked:
            return Facts(**found["facts"])
    folder.mkdir(parents=True, exist_ok=True)
    prepared = open_model(source.model, {}, Silent())
    save_model(prepared.model.proto, folder / "model.onnx", prepared.model)
    single = onnx.load(folder / "model.onnx")
    single.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    single.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    del single.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(single, data_prop=True), folder / "single.onnx")
    name = model_inputs(prepared.model.proto)[0].name
    counts = {}
    for kind, limit in (("few", source.few), ("all", source.images)):
        request = DataRequest(source.calibration, limit=limit, threads=threads, preprocess=source.preprocess)
        counts[kind] = _write_images(open_data(prepared.model, request, Silent())[0], name, folder / f"{kind}.npy")[0]
    request = DataRequest(source.evaluation, limit=source.evaluated, threads=threads, preprocess=source.preprocess)
    n, labels = _write_images(open_data(prepared.model, request, Silent())[0], name, folder / "evaluation.npy")
    session = open_session(prepared.model, threads=threads)
    images = np.load(folder / "evaluation.npy", mmap_mode="r")
    logits = [session.run(None, {name: np.array(images[at : at + BATCH])})[0] for at in range(0, n, BATCH)]
    np.save(folder / "reference.npy", np.concatenate(logits))
    labelled = all(label is not None for label in labels)
    np.save(folder / "labels.npy", np.array([-1 if label is None else label for label in labels], np.int64))
    facts = Facts(name, counts, n, labelled, prepared.model.sha256)
    write_text(stamp, json.dumps({"asked": asked, "facts": asdict(facts)}, indent=1))
    return facts


def _write_images(dataset: Dataset, name: str, path: Path) -> tuple[int, list[int | None]]:
    """Preprocessed images of a data set as one array (N, C, H, W); their number and labels."""
    array, at = None, 0
    labels: list[int | None] = []
    for batch in batches(dataset, BATCH):
        values = batch.inputs[name]
        if array is None:
            shape = (len(dataset), *values.shape[1:])
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        array[at : at + len(values)] = values
        at += len(values)
        labels.extend(batch.labels)
    assert array is not None, "quantlab refuses empty data sets"
    array.flush()
    return at, labels
