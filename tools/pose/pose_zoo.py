"""The pose models that can be chosen, with their configurations in mmpose and their weights at OpenMMLab."""

from dataclasses import dataclass

MEDIAPIPE = "mediapipe"  # the only model that is not from mmpose: pose_mediapipe.py
OPENMMLAB = "https://download.openmmlab.com/mmpose/v1/"


@dataclass(frozen=True)
class ModelChoice:
    """`config`: below mmpose's body_2d_keypoint configurations; `weights`: below OPENMMLAB; `size`: input side in pixels
    that can be changed, None if the model fixes it."""

    config: str
    weights: str
    top_down: bool = False
    size: int | None = 640


MODELS: dict[str, ModelChoice] = {
    "rtmo-t": ModelChoice("rtmo/body7/rtmo-t_8xb32-600e_body7-416x416.py",
                          "projects/rtmo/rtmo-t_8xb32-600e_body7-416x416-f48f75cb_20231219.pth", size=416),
    "rtmo-s": ModelChoice("rtmo/body7/rtmo-s_8xb32-600e_body7-640x640.py",
                          "projects/rtmo/rtmo-s_8xb32-600e_body7-640x640-dac2bf74_20231211.pth"),
    "rtmo-m": ModelChoice("rtmo/body7/rtmo-m_16xb16-600e_body7-640x640.py",
                          "projects/rtmo/rtmo-m_16xb16-600e_body7-640x640-39e78cc4_20231211.pth"),
    "rtmo-l": ModelChoice("rtmo/body7/rtmo-l_16xb16-600e_body7-640x640.py",
                          "projects/rtmo/rtmo-l_16xb16-600e_body7-640x640-b37118ce_20231211.pth"),
    "hrnet-w32": ModelChoice("topdown_heatmap/coco/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py",
                             "body_2d_keypoint/topdown_heatmap/coco/"
                             "td-hm_hrnet-w32_8xb64-210e_coco-256x192-81c58e40_20220909.pth", top_down=True, size=None),
}
