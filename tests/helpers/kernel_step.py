"""A pretraining step in miniature: every op once or twice, from pixels to loss."""

from typing import Any

import torch
from kernel_inputs import Draw, Sizes, draw_keep
from torch import Tensor

from svdata2vec.kernels import functional as K
from svdata2vec.kernels.dispatch import Impl

SIZES = Sizes(B=3, T=9, K=4, D=24, H=2)


def step_inputs(device: str) -> dict[str, Any]:
    """Named `leaves`, whose gradients count, and what is given beside them."""
    draw, B, T, D = Draw(device=device), SIZES.B, SIZES.T, SIZES.D
    shapes = {"project": (15, D), "skeleton": (B, T, D), "temporal": (T, D), "mask": (D,), "qkv": (D, 3 * D), "bias": (D,)}
    shapes |= dict.fromkeys(("scale", "shift", "slope"), (15,))
    return {
        "leaves": {name: (0.2 * draw.parameter(*shape)).requires_grad_() for name, shape in shapes.items()},
        "video": torch.randint(0, 256, (B, T, 6, 5, 3), dtype=torch.uint8).to(device),
        "keep": draw_keep(B, T, SIZES.K, device),
        "hidden": draw.mask(B, SIZES.K, share=0.7),
        "layers": draw.activation(2, B, T, D),
        "scored": draw.mask(B, T, share=0.8),
        "running": (torch.zeros(15, device=device), torch.ones(15, device=device)),
    }


def step_loss(inputs: dict[str, Any], impl: Impl) -> Tensor:
    leaves, keep = inputs["leaves"], inputs["keep"]
    windows = K.gather_frames(inputs["video"], keep, impl=impl)
    batch_norm = [leaves[name] for name in ("scale", "shift", "slope")]
    windows = K.batch_norm_prelu(windows, *batch_norm, *inputs["running"], shortcut_FCHW=windows, training=True, impl=impl)
    video = windows.mean((2, 3)).view(*keep.shape, 15) @ leaves["project"]
    student = K.fuse_tokens(video, leaves["skeleton"], keep, inputs["hidden"], leaves["temporal"], impl=impl)
    _, normed = K.add_layer_norm(student, None, leaves["mask"], leaves["bias"], impl=impl)
    attended = K.attention(normed @ leaves["qkv"], SIZES.H, impl=impl)
    student, normed = K.add_layer_norm(student, attended, leaves["mask"], leaves["bias"], impl=impl)
    student = student + K.bias_gelu(normed, leaves["bias"], impl=impl)
    full = K.restore_tokens(student, leaves["mask"], keep, leaves["temporal"], impl=impl)
    prediction = full + K.attention(full @ leaves["qkv"], SIZES.H, impl=impl)
    target = K.layer_targets(torch.cat([inputs["layers"], full[None]]), impl=impl)
    return K.masked_mse(prediction, target, inputs["scored"], impl=impl)
