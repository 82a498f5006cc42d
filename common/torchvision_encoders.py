"""Encoders cut from torchvision's networks, with GroupNorm and without in-place operations."""

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models import (
    DenseNet121_Weights,
    ResNet18_Weights,
    ResNet50_Weights,
    densenet121,
    resnet,
)
from torchvision.models.densenet import DenseNet

from common.encoder import Encoder, group_norm

IMAGENET = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V2,
    "densenet121": DenseNet121_Weights.IMAGENET1K_V1,
}


class _BasicBlock(resnet.BasicBlock):
    """torchvision's block with `out + identity` instead of `out += identity`."""

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + identity)  # type: ignore[no-any-return]


class _Bottleneck(resnet.Bottleneck):
    """torchvision's block with `out + identity` instead of `out += identity`."""

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + identity)  # type: ignore[no-any-return]


def _resnet(block: type[resnet.BasicBlock | resnet.Bottleneck], layers: list[int]) -> Encoder:
    # Zero-initialised last norms: every block starts as the identity (Goyal et al., "Accurate,
    # large minibatch SGD", 2017, section 5.1), which early averaging of many sites needs.
    net = resnet.ResNet(block, layers, norm_layer=group_norm, zero_init_residual=True)
    one_channel = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(one_channel.weight, mode="fan_out", nonlinearity="relu")
    stem = nn.Sequential(one_channel, net.bn1, nn.ReLU())
    first = nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), net.layer1)
    expansion = block.expansion
    channels = (64, *(expansion * width for width in (64, 128, 256, 512)))
    return Encoder([stem, first, net.layer2, net.layer3, net.layer4], channels)


def _densenet() -> Encoder:
    net: DenseNet = densenet121(weights=None)
    _batch_to_group_norm(net)
    parts = dict(net.features.named_children())
    conv = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    stages: list[nn.Module] = [
        nn.Sequential(conv, parts["norm0"], nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), parts["denseblock1"]),
        nn.Sequential(parts["transition1"], parts["denseblock2"]),
        nn.Sequential(parts["transition2"], parts["denseblock3"]),
        nn.Sequential(parts["transition3"], parts["denseblock4"], parts["norm5"], nn.ReLU()),
    ]
    return Encoder(stages, (64, 256, 512, 1024, 1024))


def _batch_to_group_norm(module: nn.Module) -> None:
    """Replace every BatchNorm2d below `module`, keeping names so that weights still load."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, group_norm(child.num_features))
        else:
            _batch_to_group_norm(child)


BACKBONES: dict[str, Callable[[], Encoder]] = {
    "resnet18": lambda: _resnet(_BasicBlock, [2, 2, 2, 2]),
    "resnet50": lambda: _resnet(_Bottleneck, [3, 4, 6, 3]),
    "densenet121": _densenet,
}
