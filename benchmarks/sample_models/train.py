"""Train the three bundled models on Fashion-MNIST and export them to ONNX.

Run on any machine with PyTorch (a GPU makes it minutes instead of hours)::

    python benchmarks/sample_models/train.py --data /usr/share/datasets/fashion-mnist --out build/sample-models

``--data`` is a folder with the four gzip-compressed IDX files of Fashion-MNIST (Debian package
``dataset-fashion-mnist``). The last epoch's weights are kept, never the best epoch's on the test set, so the
10,000 test images stay an honest measure. ``pack.py`` turns the result into ``datasets/samples``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images scaled to 0..1


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and an additive shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-20 for 28x28 single-channel images."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64), blocks: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(BasicBlock(inputs, width, 2 if stage > 0 and block == 0 else 1))
                inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Channel attention with a hard-sigmoid gate (Howard et al. 2019, section 5.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, channels // 4)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = functional.relu(self.reduce(functional.adaptive_avg_pool2d(x, 1)))
        return x * functional.hardsigmoid(self.expand(gate))


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze-excite, project; hard-swish or ReLU (Howard et al. 2019, figure 4)."""

    def __init__(
        self, inputs: int, expanded: int, outputs: int, kernel: int, stride: int, *, excite: bool, swish: bool
    ) -> None:
        super().__init__()

        def activation() -> nn.Module:
            return nn.Hardswish() if swish else nn.ReLU()

        layers: list[nn.Module] = [
            nn.Conv2d(inputs, expanded, 1, bias=False),
            nn.BatchNorm2d(expanded),
            activation(),
            nn.Conv2d(expanded, expanded, kernel, stride, kernel // 2, groups=expanded, bias=False),
            nn.BatchNorm2d(expanded),
            activation(),
        ]
        if excite:
            layers.append(SqueezeExcite(expanded))
        layers += [nn.Conv2d(expanded, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return x + y if self.residual else y


class MobileNetV3Like(nn.Module):
    """A MobileNetV3-Small in miniature: depthwise convolutions, hard-swish, squeeze-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
            InvertedResidual(16, 48, 24, 3, 2, excite=True, swish=False),
            InvertedResidual(24, 72, 24, 3, 1, excite=False, swish=False),
            InvertedResidual(24, 96, 40, 5, 2, excite=True, swish=True),
            InvertedResidual(40, 160, 40, 5, 1, excite=True, swish=True),
            InvertedResidual(40, 160, 40, 5, 1, excite=True, swish=True),
            InvertedResidual(40, 200, 64, 5, 1, excite=True, swish=True),
            InvertedResidual(64, 256, 64, 5, 1, excite=True, swish=True),
            nn.Conv2d(64, 256, 1, bias=False),
            nn.BatchNorm2d(256),
            nn.Hardswish(),
        )
        self.classifier = nn.Sequential(nn.Linear(256, 128), nn.Hardswish(), nn.Dropout(0.1), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        return self.project((weights @ v).transpose(1, 2).reshape(n, tokens, width))


class EncoderBlock(nn.Module):
    """Layer norm before attention and before the MLP, both with a residual (Dosovitskiy et al. 2021, figure 1)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """A ViT in miniature: 49 patches of 4x4 pixels and a class token."""

    def __init__(self, width: int = 96, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 50, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.classifier(self.norm(self.blocks(x))[:, 0])


MODELS = {"fashion-resnet": ResNet, "fashion-mobilenet": MobileNetV3Like, "fashion-vit": VisionTransformer}


def read_idx(path: Path) -> np.ndarray:
    """Read a gzip-compressed IDX file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def load(folder: Path, split: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normalised images (N, 1, 28, 28) float32 and labels (N,) int64 of ``train`` or ``t10k``."""
    images = torch.from_numpy(read_idx(folder / f"{split}-images-idx3-ubyte.gz").copy()).to(device)
    labels = torch.from_numpy(read_idx(folder / f"{split}-labels-idx1-ubyte.gz").astype(np.int64)).to(device)
    return (images.float().unsqueeze(1) / 255 - MEAN) / STD, labels


def augment(x: Tensor) -> Tensor:
    """Random shift by up to two pixels, horizontal flip, and a 7x7 hole in half of the images."""
    n, _, height, width = x.shape
    padded = functional.pad(x, (2, 2, 2, 2), value=-MEAN / STD)
    top = torch.randint(0, 5, (n, 1), device=x.device) + torch.arange(height, device=x.device)
    left = torch.randint(0, 5, (n, 1), device=x.device) + torch.arange(width, device=x.device)
    flip = torch.rand(n, 1, device=x.device) < 0.5
    left = torch.where(flip, left.flip(1), left)
    x = padded[torch.arange(n, device=x.device)[:, None, None], 0, top[:, :, None], left[:, None, :]].unsqueeze(1)
    rows = torch.arange(height, device=x.device)[None, :, None]
    columns = torch.arange(width, device=x.device)[None, None, :]
    y0 = torch.randint(-6, height, (n, 1, 1), device=x.device)
    x0 = torch.randint(-6, width, (n, 1, 1), device=x.device)
    hole = (rows >= y0) & (rows < y0 + 7) & (columns >= x0) & (columns < x0 + 7)
    hole &= torch.rand(n, 1, 1, device=x.device) < 0.5
    return x.masked_fill(hole.unsqueeze(1), -MEAN / STD)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    hits = sum(
        int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(1000), labels.split(1000), strict=True)
    )
    return 100.0 * hits / len(labels)


def make_optimizer(model: nn.Module) -> tuple[torch.optim.Optimizer, float]:
    """Optimizer and peak learning rate: SGD with Nesterov momentum for convolutions, AdamW for the transformer."""
    if isinstance(model, VisionTransformer):
        return torch.optim.AdamW(model.parameters(), 1.5e-3, weight_decay=0.05), 1.5e-3
    return torch.optim.SGD(model.parameters(), 0.2, momentum=0.9, weight_decay=5e-4, nesterov=True), 0.2


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int) -> None:
    """Training with a one-cycle learning rate."""
    steps = len(images) // batch
    optimizer, peak = make_optimizer(model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, epochs * steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(images), device=images.device)
        total = torch.zeros((), device=images.device)
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            loss = functional.cross_entropy(model(augment(images[rows])), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        if epoch % 10 == 9:
            print(f"  epoch {epoch + 1}/{epochs} loss {total.item() / steps:.4f}", flush=True)


def export(model: nn.Module, path: Path) -> None:
    """Write ONNX with a dynamic batch and the batch norms unfolded, as most exports in the field have them."""
    model.eval().cpu()
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 28, 28),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        dynamo=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=None, help="60, and 150 for the transformer, if not given")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS, help="train only these")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = load(options.data, "train", device)
    test_images, test_labels = load(options.data, "t10k", device)
    written = options.out / "training.json"
    record: dict[str, dict[str, object]] = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    for name in options.models:
        factory = MODELS[name]
        epochs = options.epochs or (150 if factory is VisionTransformer else 60)
        torch.manual_seed(options.seed)
        model = factory().to(device)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{name}: {parameters:,} parameters", flush=True)
        start = time.perf_counter()
        train(model, images, labels, epochs, options.batch)
        top1 = accuracy(model, test_images, test_labels)
        print(f"  top-1 on 10,000 test images {top1:.2f} % after {time.perf_counter() - start:.0f} s", flush=True)
        export(model, options.out / f"{name}.onnx")
        record[name] = {
            "parameters": parameters,
            "test_top1_percent": top1,
            "seed": options.seed,
            "epochs": epochs,
            "batch": options.batch,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        }
    written.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
