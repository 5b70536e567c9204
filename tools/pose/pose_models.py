"""Loads mmpose's models and runs them on frames. Runs in .venv-pose (tools/pose/pose_env.sh); nothing else imports mmpose.

RTMO finds boxes and joints of all persons in one pass; HRNet-w32 finds the joints in boxes that are given. Both give the
17 joints of COCO. N detections in a frame, V joints.
"""

import contextlib
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pose_checkpoint import first_line, read_checkpoint
from pose_zoo import MODELS

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import COCO17
from svdata2vec.shards.tracking import Detections

NUM_JOINTS = len(COCO17.joints)
NOT_INSTALLED = ("mmcv.ops", "mmcv.ops.multi_scale_deform_attn", "mmdet", "mmdet.utils", "xtcocotools", "xtcocotools.coco",
                 "xtcocotools.cocoeval", "xtcocotools.mask")


class _RaisingModule(types.ModuleType):
    """A module that replaces a library that is not installed; it contains such modules, and classes that cannot be used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        place = self.__name__
        if f"{place}.{name}" in sys.modules:
            return sys.modules[f"{place}.{name}"]

        def refuse(self: object, *args: object, **kwargs: object) -> None:
            raise NotImplementedError(f"{place}.{name} is not installed: the models of this tool do without it")

        return type(name, (torch.nn.Module,), {"__init__": refuse})


def import_mmpose() -> Any:
    """Import mmpose without compiled mmcv, mmdet and xtcocotools, so that nothing needs a compiler. Returns the module.

    mmpose imports mmcv.ops (deformable convolutions) and two names of mmdet.utils (an alias and a training-only function)
    for models that are not used here, and xtcocotools (COCO's annotations, metrics and masks) for training and evaluation.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import_torchvision()
            for name in NOT_INSTALLED:
                sys.modules.setdefault(name, _RaisingModule(name))
            import mmpose
        except ImportError as error:
            raise UserError(f"mmpose cannot be imported ({error}); run tools/pose/pose_env.sh and then "
                            ".venv-pose/bin/python tools/pose/extract_poses.py") from error
    return mmpose


def import_torchvision() -> None:
    """Import torchvision even if its compiled part does not load, as on a CPU-only torch: its Python part describes two
    operators that only the compiled part declares. Declared, they still have no implementation and raise if called."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
        import torchvision  # noqa: F401


_DECLARED: list[torch.library.Library] = []  # a declaration lives as long as its object


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one. UserError if cuda is requested but not available."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this torch sees no GPU; take --device cpu, or see nvidia-smi and torch's build")
    return torch.device(name)


class PoseModel:
    """A pose model on a device. `prepare` a frame (any thread), `predict` many at once."""

    def __init__(self, name: str, device: torch.device, *, input_size: int | None = None, min_score: float = 0.1,
                 batch: int = 16) -> None:
        """Build the model; `load_weights` or, in tests, `draw_weights` must follow.

        `min_score`: below it RTMO reports no detection. UserError if `input_size` does not fit the model.
        """
        self.choice = MODELS[name]
        self.name, self.device, self.batch = name, device, batch
        root = Path(import_mmpose().__file__).parent / ".mim" / "configs" / "body_2d_keypoint"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._build(root / self.choice.config, _checked_size(name, input_size), min_score)

    def _build(self, config_file: Path, input_size: int | None, min_score: float) -> None:
        from mmengine.config import Config
        from mmengine.dataset import Compose
        from mmpose.apis import init_model

        config = Config.fromfile(config_file)
        pipeline = config.test_dataloader.dataset.pipeline
        if not self.choice.top_down:
            side = input_size or self.choice.size
            config.model.test_cfg.update(input_size=(side, side), score_thr=min_score, nms_pre=1000)
            next(step for step in pipeline if step.type == "BottomupResize").input_size = (side, side)
        config.model.backbone.init_cfg = None  # else mmengine fetches weights that the checkpoint replaces
        torch.manual_seed(0)  # some layers draw weights when they are built: see draw_weights
        self.model = init_model(config, None, str(self.device))
        self._prepare = Compose(pipeline)

    def draw_weights(self, seed: int = 0) -> None:
        """Random weights, for tests: the same ones for the same seed."""
        from mmengine.logging import MMLogger

        MMLogger.get_current_instance().setLevel("ERROR")  # it names every array otherwise
        torch.manual_seed(seed)
        self.model.init_weights()

    def prepare(self, frame_bgr: np.ndarray, box_N4: np.ndarray | None = None) -> list[dict[str, Any]]:
        """The model's inputs for one frame, uint8 (height, width, 3): one, or one per box of a top-down model."""
        common = {"img": frame_bgr, **self.model.dataset_meta}
        if not self.choice.top_down:
            return [self._prepare(common)]
        if box_N4 is None:
            raise ValueError(f"{self.name} needs boxes")
        one = np.ones(1, np.float32)
        return [self._prepare({**common, "bbox": box[None].astype(np.float32), "bbox_score": one}) for box in box_N4]

    def predict(self, prepared: Sequence[list[dict[str, Any]]]) -> list[Detections]:
        """Detections of each prepared frame, coordinates in the frame's pixels. Top-down scores are the joints' mean."""
        from mmengine.dataset import pseudo_collate

        flat = [entry for frame in prepared for entry in frame]
        instances: list[Any] = []
        with torch.no_grad(), warnings.catch_warnings(), _clear_memory_errors():
            warnings.simplefilter("ignore")
            for start in range(0, len(flat), self.batch):
                samples = self.model.test_step(pseudo_collate(flat[start : start + self.batch]))
                instances += [sample.pred_instances for sample in samples]
        rest = iter(instances)
        return [_detections([next(rest) for _ in frame], self.choice.top_down) for frame in prepared]

    def load_weights(self, source: str, *, trust: bool = False) -> None:
        """Load the weights of a file or URL; see `read_checkpoint`. UserError if they belong to another model."""
        state = read_checkpoint(source, trust=trust)
        state = {key.removeprefix("module."): value for key, value in state.items()}
        needed = self.model.state_dict()
        wanted = [name for name, _ in self.model.named_parameters()]
        wanted += [name for name in needed if name.endswith(("running_mean", "running_var"))]
        wrong = [name for name in wanted if name not in state or state[name].shape != needed[name].shape]
        if wrong:
            raise UserError(f"{source}: not the weights of {self.name}: {len(wrong)} of {len(wanted)} arrays are missing or "
                            f"of another size, e.g. {wrong[0]}; choose their model with --model")
        self.model.load_state_dict({name: state[name] for name in needed if name in state}, strict=False)


@contextlib.contextmanager
def _clear_memory_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"the GPU's memory is full ({first_line(error)})") from error


def _checked_size(name: str, input_size: int | None) -> int | None:
    if input_size is None:
        return None
    if MODELS[name].size is None:
        raise UserError(f"--input-size {input_size}: {name} has a fixed input size; leave the option out")
    if input_size % 32 or input_size < 64:
        raise UserError(f"--input-size {input_size}: expected a multiple of 32, at least 64")
    return input_size


def _detections(instances: Sequence[Any], top_down: bool) -> Detections:
    """One frame's detections: from one set of instances of RTMO, or from one instance per box."""
    if not instances:
        return Detections(*(np.zeros((0, *rest), np.float32) for rest in ((4,), (), (NUM_JOINTS, 2), (NUM_JOINTS,))))

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(entry, name) for entry in instances]).astype(np.float32)

    joint_score_NV = joined("keypoint_scores")
    score_N = joint_score_NV.mean(axis=1) if top_down else joined("bbox_scores")
    return Detections(joined("bboxes"), score_N, joined("keypoints"), joint_score_NV)
