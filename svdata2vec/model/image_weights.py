"""Weights of an image network (ResNet-18 in torchvision's naming) as those of the video encoder.

The 7x7 stem is inflated over time (Carreira, Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017): every frame of the window
gets a fifth of it. PReLUs start at slope 0, the ReLU that the weights were trained with. So a frame whose window of five
shows one picture five times has that picture's features.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from svdata2vec.model.video_encoder import VideoEncoder

STEM = "conv1.weight"
HEAD = ("fc.weight", "fc.bias")  # of ImageNet's classes
COUNTER = "num_batches_tracked"  # files of older versions have none


class NotImageWeightsError(ValueError):
    """The weights are not those of such a network; the message says in what they differ."""


@dataclass(frozen=True)
class ImageWeights:
    """What an image network gives a video encoder.

    Attributes:
        weights: of the encoder, by its own names.
        taken, left: names in the image network.
    """

    weights: dict[str, Tensor]
    taken: list[str]
    left: list[str]


def image_weights(found: Mapping[str, Tensor], encoder: VideoEncoder) -> ImageWeights:
    """The weights of `encoder` that an image network has; all but those of its last linear map.

    Raises NotImageWeightsError for names that are missing or unknown, and for other shapes or values that are not finite.
    """
    wanted = {_their_name(name): (name, tensor) for name, tensor in encoder.state_dict().items() if _their_name(name)}
    missing = [name for name in wanted if name not in found and not name.endswith(COUNTER)]
    unknown = sorted(set(found) - set(wanted) - set(HEAD))
    if missing or unknown:
        both = f"{len(missing)} weights of a ResNet-18 are missing{_some(missing)}, {len(unknown)} are of none{_some(unknown)}"
        raise NotImageWeightsError(both)
    weights = {name: torch.zeros_like(tensor) for name, tensor in encoder.state_dict().items() if _is_slope(name)}
    for theirs, (ours, tensor) in wanted.items():
        one_frame = tensor[:, :, 0] if theirs == STEM else tensor
        given = _checked(theirs, found.get(theirs, torch.zeros_like(tensor)), one_frame)
        weights[ours] = inflated(given, tensor.shape[2]) if theirs == STEM else given
    return ImageWeights(weights, [name for name in wanted if name in found], [name for name in HEAD if name in found])


def inflated(weight_OIHW: Tensor, frames: int) -> Tensor:
    """(O, I, H, W) -> (O, I, frames, H, W), whose sum over time is the weight."""
    return weight_OIHW[:, :, None].expand(-1, -1, frames, -1, -1) / frames


def _their_name(ours: str) -> str:
    """torchvision's name of a weight of the video encoder; "" for what an image network does not have."""
    if _is_slope(ours) or ours.startswith("proj."):
        return ""
    name = re.sub(r"^stem\.(conv|bn)\.", r"\g<1>1.", ours)
    return re.sub(r"^stages\.(\d)\.", lambda stage: f"layer{int(stage[1]) + 1}.", name)


def _is_slope(name: str) -> bool:
    return re.search(r"\brelu\d?\.weight$", name) is not None


def _checked(name: str, given: Tensor, wanted: Tensor) -> Tensor:
    if given.shape != wanted.shape or given.is_floating_point() != wanted.is_floating_point():
        raise NotImageWeightsError(
            f"{name} is {given.dtype} {tuple(given.shape)}, expected {wanted.dtype} {tuple(wanted.shape)} (model.stem_width "
            "channels in the first stage)"
        )
    given = given.to(wanted.dtype)  # where a large float64 is infinite
    if not given.isfinite().all() or (name.endswith("running_var") and (given < 0).any()):
        raise NotImageWeightsError(f"{name} holds values that are not finite, or variances below 0")
    return given


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:4])})" if names else ""
