"""Preprocessing by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from quantlab.datasets.geometry import Interpolation
from quantlab.datasets.preprocess import Color, Preprocess, Resize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PRESETS: Mapping[str, Preprocess] = MappingProxyType(
    {
        # torchvision's classification reference, and most PyTorch models trained on ImageNet.
        "imagenet": Preprocess(
            resize=Resize.SHORTEST, shortest=256, crop=(224, 224), color=Color.RGB,
            scale=255.0, mean=IMAGENET_MEAN, std=IMAGENET_STD,
        ),
        # Caffe's models (VGG, ResNet by He et al.) and what Keras calls mode="caffe".
        "imagenet-caffe": Preprocess(
            resize=Resize.SHORTEST, shortest=256, crop=(224, 224), color=Color.BGR, mean=(103.939, 116.779, 123.68),
        ),
        # TensorFlow's MobileNet and ResNet v2: values in -1..1 (Keras' mode="tf").
        "mobilenet": Preprocess(
            resize=Resize.SHORTEST, shortest=256, crop=(224, 224), color=Color.RGB, mean=(127.5,), std=(127.5,),
        ),
        # EfficientNet-Lite0 of the TensorFlow TPU repository.
        "efficientnet-lite": Preprocess(
            resize=Resize.SHORTEST, shortest=256, interpolation=Interpolation.BICUBIC, crop=(224, 224),
            color=Color.RGB, mean=(127.0,), std=(128.0,),
        ),
        # Sizes and colour of the following come from the model's input.
        "unit": Preprocess(resize=Resize.STRETCH, scale=255.0),
        "raw": Preprocess(resize=Resize.STRETCH),
        "symmetric": Preprocess(resize=Resize.STRETCH, mean=(127.5,), std=(127.5,)),
        # The bundled models; mean and deviation of the 60,000 training images.
        "fashion-mnist": Preprocess(
            resize=Resize.STRETCH, size=(28, 28), color=Color.GRAY, scale=255.0, mean=(0.2860,), std=(0.3530,),
        ),
        "mnist": Preprocess(
            resize=Resize.STRETCH, size=(28, 28), color=Color.GRAY, scale=255.0, mean=(0.1307,), std=(0.3081,),
        ),
    }
)  # fmt: skip
"""Every preset by its name on the command line."""
