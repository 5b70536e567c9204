"""A ResNet-18 with torchvision's names and order of layers, to hold the video encoder against."""

import torch
from torch import Tensor, nn


class ImageBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != channels:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + shortcut).relu()


class ImageNetwork(nn.Module):
    """`width` channels in the first stage (torchvision: 64), `blocks` per stage (ResNet-34: 3, 4, 6, 3)."""

    def __init__(self, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(blocks):
            channels = width * 2**stage
            layer = [ImageBlock(inputs if n == 0 else channels, channels, 2 if stage and n == 0 else 1) for n in range(count)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
            inputs = channels
        self.fc = nn.Linear(inputs, 1000)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """(B, 8 * width), what `fc` reads."""
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x_BCHW)).relu(), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x.mean(dim=(2, 3))


def random_image_network(width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2)) -> ImageNetwork:
    """One with random weights and statistics, in evaluation mode."""
    network = ImageNetwork(width, blocks).eval()
    for name, tensor in network.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            else:
                tensor.add_(0.2 * torch.rand(tensor.shape))
    return network
