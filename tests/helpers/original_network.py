"""A plain network with the names and the arithmetic of the authors' release, written from the paper's description.

It shares no code with the library: Conv3d on all frames, BatchNorm3d, attention by hand, mask tokens put back by a
shuffle and its inverse, targets by `instance_norm`, the loss by hand. Tests load its random weights through the converter.

B clips, M persons, T frames, K kept frames, V joints, C coordinates, D width
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (D // self.num_heads) ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, N, D))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class BasicBlock(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.PReLU(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.PReLU(planes)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + (x if self.downsample is None else self.downsample(x)))


class Trunk(nn.Module):
    def __init__(self, stem: int) -> None:
        super().__init__()
        for i in range(4):
            inplanes, planes = stem * 2 ** max(i - 1, 0), stem * 2**i
            layer = nn.Sequential(BasicBlock(inplanes, planes, 1 if i == 0 else 2), BasicBlock(planes, planes, 1))
            setattr(self, f"layer{i + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(4):
            x = getattr(self, f"layer{i + 1}")(x)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class ResNet(nn.Module):
    def __init__(self, stem: int) -> None:
        super().__init__()
        self.frontend3D = nn.Sequential(
            nn.Conv3d(3, stem, (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False),
            nn.BatchNorm3d(stem),
            nn.PReLU(stem),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        self.trunk = Trunk(stem)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frontend3D(x)
        frames = [self.trunk_input(x, t) for t in range(x.shape[2])]
        # All frames of all clips in one batch, clip after clip: BatchNorm sees them together.
        stacked = torch.stack(frames, dim=1).flatten(0, 1)
        return self.trunk(stacked).view(x.shape[0], x.shape[2], -1)

    @staticmethod
    def trunk_input(x: Tensor, t: int) -> Tensor:
        return x[:, :, t]


class VideoExtractor(nn.Module):
    def __init__(self, dim: int, stem: int) -> None:
        super().__init__()
        self.resnet = ResNet(stem)
        self.proj = nn.Linear(stem * 8, dim)

    def forward(self, video: Tensor) -> Tensor:
        mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1, 1)
        std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1, 1)
        x = video.permute(0, 4, 1, 2, 3).float()
        return self.proj(self.resnet((x - mean) / std))


class JointsEmbed(nn.Module):
    def __init__(self, persons: int, joints: int, coordinates: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(persons * coordinates, dim, kernel_size=(1, joints))

    def forward(self, joints: Tensor) -> Tensor:
        B, M, T, V, C = joints.shape
        x = joints.permute(0, 1, 4, 2, 3).reshape(B, M * C, T, V)
        return self.proj(x).squeeze(3).transpose(1, 2)


class Backbone(nn.Module):
    def __init__(self, *, dim: int, depth: int, heads: int, stem: int, frames: int, persons: int, joints: int) -> None:
        super().__init__()
        self.temp_embed = nn.Parameter(torch.randn(1, frames, dim))
        self.joints_embed = JointsEmbed(persons, joints, 2, dim)
        self.feature_extractor_video = VideoExtractor(dim, stem)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)


class OriginalPretrain(Backbone):
    """Student of the pretraining; the teacher's blocks are given to `targets`."""

    def __init__(self, *, decoder_depth: int, dim: int, heads: int, frames: int, **sizes: int) -> None:
        super().__init__(dim=dim, heads=heads, frames=frames, **sizes)
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim))
        self.decoder_temp_embed = nn.Parameter(torch.randn(1, frames, dim))
        self.decoder_embed = nn.Linear(dim, dim)
        self.decoder_blocks = nn.ModuleList(Block(dim, heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(dim)
        self.decoder_pred = nn.Linear(dim, dim)

    def predict(self, video: Tensor, joints: Tensor, ids_keep: Tensor, hidden: Tensor) -> Tensor:
        """`ids_keep` (B, K) kept frames; `hidden` (B, K) True where the skeleton of a kept frame is not shown."""
        both = torch.stack([self.feature_extractor_video(video), self.joints_embed(joints)])
        mixed = both.mean(0) + self.temp_embed
        alone = both[0] + self.temp_embed
        index = ids_keep[:, :, None].repeat(1, 1, mixed.shape[2])
        x = torch.where(hidden[:, :, None], torch.gather(alone, 1, index), torch.gather(mixed, 1, index))
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        # As a masked autoencoder does it: kept tokens first, then mask tokens, then back to the order of time.
        B, T = video.shape[:2]
        rest = torch.stack([torch.tensor([t for t in range(T) if t not in row]) for row in ids_keep.tolist()])
        ids_restore = torch.argsort(torch.cat([ids_keep, rest], dim=1), dim=1)
        x = torch.cat([x, self.mask_token.repeat(B, T - x.shape[1], 1)], dim=1)
        x = torch.gather(x, 1, ids_restore[:, :, None].repeat(1, 1, x.shape[2])) + self.decoder_temp_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))

    @torch.no_grad()
    def targets(self, joints: Tensor, teacher_blocks: nn.ModuleList, top: int) -> Tensor:
        x = self.joints_embed(joints) + self.temp_embed
        layers = []
        for block in teacher_blocks:
            x = block(x)
            layers.append(x)
        normalised = [F.instance_norm(layer.transpose(1, 2)).transpose(1, 2) for layer in layers[-top:]]
        return sum(normalised[1:], normalised[0]) / len(normalised)

    @staticmethod
    def loss(prediction: Tensor, target: Tensor, ids_keep: Tensor, hidden: Tensor) -> Tensor:
        mask = torch.ones(target.shape[:2])
        for b, (kept, flags) in enumerate(zip(ids_keep.tolist(), hidden.tolist(), strict=True)):
            for t, flag in zip(kept, flags, strict=True):
                mask[b, t] = float(flag)
        per_token = ((prediction - target) ** 2).mean(dim=-1)
        return (per_token * mask).sum() / mask.sum()


class FinetuneHead(nn.Module):
    def __init__(self, dim: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.bn = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.bn(self.fc1(x.mean(1)))))


class ProbeHead(nn.Module):
    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(1))


class OriginalClassifier(Backbone):
    """Classifier; `forward` takes video, joints or both."""

    def __init__(self, head: nn.Module, **sizes: int) -> None:
        super().__init__(**sizes)
        self.head = head

    def forward(self, video: Tensor | None, joints: Tensor | None) -> Tensor:
        tokens = []
        if video is not None:
            tokens.append(self.feature_extractor_video(video))
        if joints is not None:
            tokens.append(self.joints_embed(joints))
        x = torch.stack(tokens).mean(0) + self.temp_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def shake(module: nn.Module) -> nn.Module:
    """Random values everywhere, BatchNorm's buffers included: a weight in a wrong place must change the numbers."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand_like(tensor) if name.endswith("running_var") else torch.randn_like(tensor)
                tensor.add_(0.1 * noise)
    return module
