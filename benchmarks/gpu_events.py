"""The compute time that quantlab reports against a loop of CUDA events written by hand, side by side.

    python benchmarks/gpu_events.py ENGINE... --batch 1 --batch 32 -o result.json

The hand-written loop knows nothing of quantlab: it opens the plan with the library's own API, binds two buffers, and
puts an event before and after each execution, one at a time. Both are run in turn, in the order ABBA, and the ratio of
their medians is taken pair by pair. Engines have one input and one output, both with a batch axis.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from quantlab.documents import dump_json
from quantlab.engines.cuda import open_device
from quantlab.engines.sidecar import read_sidecar
from quantlab.engines.tensorrt.engine import TensorRTEngine
from quantlab.engines.tensorrt.flavour import load_flavour
from quantlab.files import write_text
from quantlab.harness.environment import environment
from quantlab.records import to_plain

SCHEMA = "quantlab.gpu-events/1"


class HandWritten:
    """One execution after the other, with an event on each side."""

    def __init__(self, path: Path, inputs: dict[str, np.ndarray]) -> None:
        cuda = importlib.import_module("pycuda.driver")
        self.cuda, self.device = cuda, open_device()  # the same primary context: a second one would share the GPU
        sidecar = read_sidecar(path)
        trt: Any = load_flavour(sidecar.backend).module
        ((name, values),) = inputs.items()
        with self.device.active():
            self.logger = trt.Logger(trt.Logger.ERROR)
            self.runtime = trt.Runtime(self.logger)
            self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
            self.config = self.engine.create_runtime_config()
            self.config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            self.context = self.engine.create_execution_context(self.config)
            self.context.set_input_shape(name, values.shape)
            (output,) = (self.engine.get_tensor_name(i) for i in range(2) if self.engine.get_tensor_name(i) != name)
            size = int(np.prod(self.context.get_tensor_shape(output))) * 4
            self.buffers = [cuda.mem_alloc(values.nbytes), cuda.mem_alloc(size)]
            cuda.memcpy_htod(self.buffers[0], np.ascontiguousarray(values))
            self.context.set_tensor_address(name, int(self.buffers[0]))
            self.context.set_tensor_address(output, int(self.buffers[1]))
            self.stream = cuda.Stream(1)
            self.start, self.end = cuda.Event(), cuda.Event()
            self.context.execute_async_v3(self.stream.handle)
            self.stream.synchronize()

    def compute_ms(self, seconds: float) -> float:
        """Median over so many seconds, after 0.2 of them."""
        times: list[float] = []
        with self.device.active():
            begin = time.perf_counter()
            while (elapsed := time.perf_counter() - begin) < seconds + 0.2:
                self.start.record(self.stream)
                self.context.execute_async_v3(self.stream.handle)
                self.end.record(self.stream)
                self.end.synchronize()
                if elapsed > 0.2:
                    times.append(self.end.time_since(self.start))
        return float(np.median(times))


def measure(path: Path, batch: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Both loops in turn."""
    sidecar = read_sidecar(path)
    (spec,) = sidecar.inputs
    shape = (batch, *(side or 1 for side in spec.shape))
    inputs = {spec.name: np.random.default_rng(0).normal(size=shape).astype(spec.dtype)}
    with TensorRTEngine(path) as engine:
        engine.run(inputs)
        hand = HandWritten(path, inputs)

        def ours() -> float:
            return float(np.median(engine.time_device(inputs, seconds=seconds, transfers=False, spin=True).compute_ms))

        pairs = []
        for number in range(rounds):
            if number % 2 == 0:
                a, b = ours(), hand.compute_ms(seconds)
            else:
                b, a = hand.compute_ms(seconds), ours()
            pairs.append((a, b))
        control = [(hand.compute_ms(seconds), hand.compute_ms(seconds)) for _ in range(rounds)]
    logs, noise = (np.log([a / b for a, b in values]) for values in (pairs, control))
    return {
        "engine": sidecar.name,
        "model": sidecar.model,
        "batch": batch,
        "rounds": rounds,
        "seconds": seconds,
        "quantlab_ms": float(np.median([a for a, _ in pairs])),
        "hand_ms": float(np.median([b for _, b in pairs])),
        "ratio": float(np.exp(np.median(logs))),
        "ratio_min": float(np.exp(logs.min())),
        "ratio_max": float(np.exp(logs.max())),
        "hand_against_itself": float(np.exp(np.median(noise))),
        "pairs_ms": pairs,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path, nargs="+")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for path in options.engines:
        for batch in options.batch or [1]:
            rows.append(measure(path, batch, options.seconds, options.rounds))
            one = rows[-1]
            print(
                f"{one['model']} {one['engine']} batch {batch}: quantlab {one['quantlab_ms']:.4f} ms, by hand "
                f"{one['hand_ms']:.4f} ms, ratio {one['ratio']:.4f} "
                f"({one['ratio_min']:.4f} to {one['ratio_max']:.4f}), "
                f"by hand against itself {one['hand_against_itself']:.4f}",
                flush=True,
            )
    document = {
        "schema": SCHEMA,
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "environment": to_plain(environment(0)),
        "rows": rows,
    }
    write_text(options.out, dump_json(document))


if __name__ == "__main__":
    main()
