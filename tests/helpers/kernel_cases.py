"""Inputs and slow, obvious float64 truths for the kernel tests: loops over clips and frames, no shared trick."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def strided(tensor: Tensor) -> Tensor:
    """The same values behind strides that no kernel can mistake for contiguous ones (the last stride is 2)."""
    wide = torch.zeros((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), dtype=tensor.dtype, device=tensor.device)
    view = wide[..., 1::2]
    view.copy_(tensor)
    return view


def transposed(tensor: Tensor) -> Tensor:
    """The same values with the last two axes swapped in memory: dense, and what an elementwise op hands on to its result."""
    return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor


def gather_frames_truth(
    video: Tensor, keep: Tensor, mean: tuple[float, ...], std: tuple[float, ...], window: int
) -> Tensor:
    """(B*K, 3 * window, H, W) float64."""
    rows = []
    for clip, kept in zip(video.double(), keep.tolist(), strict=True):
        for frame in kept:
            planes = []
            for colour in range(3):
                for offset in range(-(window // 2), window // 2 + 1):
                    if 0 <= frame + offset < len(clip):
                        planes.append((clip[frame + offset, :, :, colour] - mean[colour]) / std[colour])
                    else:
                        planes.append(torch.zeros(video.shape[2:4], dtype=torch.float64))
            rows.append(torch.stack(planes))
    return torch.stack(rows) if rows else torch.zeros((0, 3 * window, *video.shape[2:4]), dtype=torch.float64)


def block_pixel_truth(frame: list[int], side: int, luma_bits: int, chroma_bits: int, x: int, y: int) -> tuple[int, ...]:
    """Red, green, blue of a packed pixel, from the bytes of its frame (shards/README.md, "Blocks"); black outside."""
    if not (0 <= x < side and 0 <= y < side):
        return 0, 0, 0
    samples, start = [], 0
    for plane, bits, column, row in (
        (side, luma_bits, x, y), (side // 2, chroma_bits, x // 2, y // 2), (side // 2, chroma_bits, x // 2, y // 2)
    ):
        first = start + 2 * (row // 4 * (plane // 4) + column // 4)
        low = start + plane * plane // 8
        index = frame[low + row * (plane // 4) + column // 4] >> 2 * (column % 4) & 3
        if bits == 3:
            index += 4 * (frame[low + plane * plane // 4 + row * (plane // 8) + column // 8] >> column % 8 & 1)
        top = 2**bits - 1
        samples.append(((top - index) * frame[first] + index * frame[first + 1] + top // 2) // top)
        start += plane * plane * (1 + bits) // 8
    luma, cb, cr = samples[0], samples[1] - 128, samples[2] - 128
    colours = (
        luma + (22987 * cr + 8192 >> 14), luma + (-11698 * cr - 5636 * cb + 8192 >> 14), luma + (29049 * cb + 8192 >> 14)
    )
    return tuple(min(max(colour, 0), 255) for colour in colours)


def bilinear_truth(pixel: Callable[[int, int], tuple[int, ...]], x: float, y: float) -> list[float]:
    """A colour between four pixels, in exact arithmetic; (0, 0) is the centre of the first pixel."""
    left, top = math.floor(x), math.floor(y)
    across, down = x - left, y - top
    total = [0.0, 0.0, 0.0]
    for column, row, weight in (
        (left, top, (1 - across) * (1 - down)), (left + 1, top, across * (1 - down)),
        (left, top + 1, (1 - across) * down), (left + 1, top + 1, across * down),
    ):
        total = [value + weight * colour for value, colour in zip(total, pixel(column, row), strict=True)]
    return total


def fuse_tokens_truth(video: Tensor, skeleton: Tensor, keep: Tensor, hidden: Tensor, temporal: Tensor) -> Tensor:
    """(B, K, D); differentiable."""
    B, K, D = video.shape
    rows = [
        temporal[t] + (video[b, k] if hidden[b, k] else (video[b, k] + skeleton[b, t]) / 2)
        for b in range(B)
        for k, t in enumerate(keep[b].tolist())
    ]
    return torch.stack(rows).view(B, K, D) if rows else video * 1.0


def restore_tokens_truth(encoded: Tensor, mask_token: Tensor, keep: Tensor, temporal: Tensor) -> Tensor:
    """(B, T, D); differentiable."""
    rows = []
    for b in range(len(encoded)):
        where = {t: k for k, t in enumerate(keep[b].tolist())}
        tokens = [encoded[b, where[t]] if t in where else mask_token for t in range(len(temporal))]
        rows.append(torch.stack(tokens) + temporal)
    return torch.stack(rows)


def attention_truth(qkv: Tensor, num_heads: int, scale: float, lengths: Tensor | None = None) -> Tensor:
    """(B, N, D); differentiable."""
    B, N, packed = qkv.shape
    D = packed // 3
    E = D // num_heads
    clips = []
    for b in range(B):
        real = N if lengths is None else int(lengths[b])
        heads = []
        for h in range(num_heads):
            q, k, v = (qkv[b, :real, part * D + h * E : part * D + (h + 1) * E] for part in range(3))
            weight = (scale * (q @ k.T)).exp()
            heads.append((weight / weight.sum(1, keepdim=True)) @ v)
        out = torch.cat(heads, dim=1)
        clips.append(torch.cat([out, torch.zeros((N - real, D), dtype=qkv.dtype)]))
    return torch.stack(clips)


def layer_targets_truth(layers: Tensor, normalise_layer: str, normalise_average: str, eps: float) -> Tensor:
    """(B, T, D), layer by layer."""
    def normalise(x: Tensor, kind: str) -> Tensor:  # x is (B, T, D)
        if kind == "none":
            return x
        if kind == "batch":
            flat = x.reshape(-1, x.shape[-1])
            return ((flat - flat.mean(0)) / (flat.var(0, correction=0) + eps).sqrt()).view(x.shape)
        axis = {"instance": 0, "layer": 1}[kind]
        mean, variance = x.mean(axis + 1, keepdim=True), x.var(axis + 1, correction=0, keepdim=True)
        return (x - mean) / (variance + eps).sqrt()

    average = sum(normalise(layer, normalise_layer) for layer in layers) / len(layers)
    assert isinstance(average, Tensor)
    return normalise(average, normalise_average)


def masked_mse_truth(prediction: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Scalar; differentiable."""
    errors = [
        ((prediction[b, t] - target[b, t]) ** 2).mean()
        for b in range(prediction.shape[0])
        for t in range(prediction.shape[1])
        if scored[b, t]
    ]
    return torch.stack(errors).mean() if errors else (prediction * 0).sum()


def add_layer_norm_truth(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Two (B, N, D); differentiable."""
    total = x + branch
    tokens = []
    for token in total.flatten(0, 1):
        mean = token.sum() / len(token)
        variance = ((token - mean) ** 2).sum() / len(token)
        tokens.append((token - mean) / (variance + eps).sqrt() * weight + bias)
    return total, torch.stack(tokens).view(x.shape)


def bias_gelu_truth(x: Tensor, bias: Tensor) -> Tensor:
    """(B, N, H); differentiable; the normal distribution from torch.special."""
    columns = [(x[..., h] + bias[h]) * torch.special.ndtr(x[..., h] + bias[h]) for h in range(len(bias))]
    return torch.stack(columns, dim=-1)


def batch_norm_prelu_truth(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor,
    statistics: tuple[Tensor, Tensor] | None,
    shortcut: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(F, C, H, W), and per channel the mean and the unbiased variance; differentiable."""
    planes, means, variances = [], [], []
    for c in range(x.shape[1]):
        values = x[:, c]
        mean = values.sum() / values.numel() if statistics is None else statistics[0][c]
        squares = ((values - mean) ** 2).sum()
        variance = squares / values.numel() if statistics is None else statistics[1][c]
        z = (values - mean) / (variance + eps).sqrt() * weight[c] + bias[c]
        z = z if shortcut is None else z + shortcut[:, c]
        planes.append(z.clamp(min=0) + slope[c] * z.clamp(max=0))
        means.append(mean)
        variances.append(squares / max(values.numel() - 1, 1))
    return torch.stack(planes, dim=1), torch.stack(means).detach(), torch.stack(variances).detach()


def max_pool_truth(x: Tensor) -> Tensor:
    """(F, C, P, Q): the largest of 3x3 pixels, stride 2, of those that there are; differentiable."""
    F, C, H, W = x.shape
    rows = []
    for i in range((H + 1) // 2):
        row = []
        for j in range((W + 1) // 2):
            window = x[:, :, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2].reshape(F, C, -1)
            row.append(window.max(2).values)
        rows.append(torch.stack(row, dim=2))
    return torch.stack(rows, dim=2)


def channels_last(tensor: Tensor) -> Tensor:
    """The same map in channels-last memory."""
    return tensor.contiguous(memory_format=torch.channels_last)


def default_scale(head_dim: int) -> float:
    """The usual scale of attention scores."""
    return 1.0 / math.sqrt(head_dim)
