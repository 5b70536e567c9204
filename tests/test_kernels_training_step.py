"""A whole pretraining step through the Triton kernels has the loss, gradients and BatchNorm statistics of the references.

Student, teacher, decoder and video encoder as in training, only smaller; on a GPU, or by the interpreter.
"""

import copy
from dataclasses import replace

import pytest
import torch
from kernel_device import DEVICE, triton_marks
from tiny import MODEL, student_config
from torch import Tensor

from svdata2vec.config.schema import DataConfig, MaskConfig
from svdata2vec.kernels.dispatch import Impl
from svdata2vec.model.masking import draw_masks
from svdata2vec.model.student import SVData2Vec
from svdata2vec.model.teacher import Teacher
from svdata2vec.training.pretrain import forward

pytestmark = triton_marks()
NUM_CLIPS, NUM_FRAMES, NUM_JOINTS, SIDE = 2, 8, 17, 32
DATA = DataConfig(num_frames=NUM_FRAMES, size=SIDE)


def one_step(
    state: dict[str, Tensor], impl: Impl, fused: bool
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and buffers after a forward and backward pass from given weights on fixed data."""
    generator = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (NUM_CLIPS, NUM_FRAMES, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    joints = SIDE * torch.rand((NUM_CLIPS, MODEL.persons, NUM_FRAMES, NUM_JOINTS, MODEL.coordinates), generator=generator)
    masks = draw_masks(["a", "b"], NUM_FRAMES, MaskConfig(0.5, 0.5), seed=0, epoch=0).to(torch.device(DEVICE))
    config = student_config(replace(MODEL, impl=impl, fused_blocks=fused), data=DATA)
    student = SVData2Vec(config, NUM_JOINTS)
    student.load_state_dict(copy.deepcopy(state))
    student.to(DEVICE)
    teacher = Teacher(student.encoder.blocks).to(DEVICE)
    loss = forward(student, teacher, video.to(DEVICE), joints.to(DEVICE), masks, config).loss
    loss.backward()
    grads = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    return loss.detach(), grads, dict(student.named_buffers())


@pytest.mark.parametrize("fused", [False, True], ids=["plain blocks", "fused blocks"])
def test_a_training_step_is_the_same_through_triton(monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    """Fused blocks as well: they are held against the plain ones."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    state = SVData2Vec(student_config(data=DATA), NUM_JOINTS).state_dict()
    loss, grads, buffers = one_step(state, "triton", fused)
    want_loss, want_grads, want_buffers = one_step(state, "torch", fused=False)
    torch.testing.assert_close(loss, want_loss, rtol=1e-5, atol=1e-6)
    assert grads.keys() == want_grads.keys()
    assert len(grads) > 80, "most of the network must have a gradient"
    for name, grad in grads.items():
        scale = want_grads[name].abs().max().item()
        torch.testing.assert_close(grad, want_grads[name], rtol=1e-3, atol=1e-4 * scale + 1e-8, msg=name)
    torch.testing.assert_close(buffers, want_buffers, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(buffer.cpu(), state[name]) for name, buffer in buffers.items() if name in state)
