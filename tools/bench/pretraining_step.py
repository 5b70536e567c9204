"""A pretraining step on clips made of random numbers, for the benchmark of the step and for the check of a GPU.

B clips, M persons, T frames, V joints, C coordinates, H W picture
"""

import torch
from torch import Tensor

from svdata2vec.config.schema import PretrainConfig
from svdata2vec.kernels.functional import masked_mse
from svdata2vec.model.execution import use_channels_last
from svdata2vec.model.masking import Masks, draw_masks
from svdata2vec.model.student import SVData2Vec
from svdata2vec.model.teacher import Teacher
from svdata2vec.training.graph import CapturedPass
from svdata2vec.training.optim import build_optimizer

NUM_JOINTS = 17
Batch = tuple[Tensor, Tensor, Masks]  # video_BTHWC, joints_BMTVC, masks


def make_batch(config: PretrainConfig, clips: int, device: torch.device) -> Batch:
    """The same clips on every device."""
    data = config.data
    generator = torch.Generator().manual_seed(0)
    shape = (clips, data.num_frames, data.size, data.size, 3)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    joints = data.size * torch.rand(clips, config.model.persons, data.num_frames, NUM_JOINTS, 2, generator=generator)
    keys = [f"clip{number}" for number in range(clips)]
    masks = draw_masks(keys, data.num_frames, config.mask, seed=0, epoch=0)
    return video.to(device), joints.to(device), masks.to(device)


class Step:
    """Student, teacher and AdamW on the device of a batch, with weights that are equal at the start.

    With `encode="all_frames"` it is the authors' way: a Conv3d, weights not laid out by us, and the host waits for each loss.
    """

    def __init__(self, config: PretrainConfig, batch: Batch, *, bf16: bool = False, graph: bool = False) -> None:
        torch.manual_seed(0)
        self.config, self.batch, self.bf16, self.device = config, batch, bf16, batch[0].device
        self.all_frames = config.encode == "all_frames"
        student = SVData2Vec(config, NUM_JOINTS)
        student.encoder.video_encoder.by_conv3d = self.all_frames
        self.student = student.to(self.device)
        self.teacher = Teacher(self.student.encoder.blocks).to(self.device)
        if not self.all_frames:
            use_channels_last(self.student)
        self.optimizer = build_optimizer(self.student.named_parameters(), config.optim)
        self.captured = CapturedPass(lambda *_: {"loss": self.loss()}, self.student) if graph else None

    def loss(self) -> Tensor:
        model = self.config.model
        video, joints, masks = self.batch
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.student(video, joints, masks)
            target = masks.of_clips(self.teacher(output.teacher_tokens_BTD, self.config.target, model.impl))
            return masked_mse(output.prediction_NTD.float(), target, masks.scored_NT, impl=model.impl)

    def run(self) -> Tensor:
        """One step; the loss before it."""
        if self.captured is None:
            loss = self.loss()
            loss.backward()
        else:
            loss = self.captured()["loss"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.teacher.update(self.student.encoder, 0.999)
        if self.all_frames:
            loss.item()
        return loss.detach()
