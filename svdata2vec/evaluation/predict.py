"""One video file in, top classes out: around whom to crop, the classes, and a picture of what was seen.

N views, C classes
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from svdata2vec.config.schema import Device
from svdata2vec.evaluation.metrics import require_finite
from svdata2vec.evaluation.persons import Persons, find_persons, too_small
from svdata2vec.evaluation.span import Span
from svdata2vec.evaluation.video_clip import Clip, read_clip
from svdata2vec.pipeline import affine
from svdata2vec.reports.contact_sheet import to_png
from svdata2vec.runs.card import shown_whole
from svdata2vec.runs.published import load_classifier
from svdata2vec.runs.runtime import pick_device
from svdata2vec.shards.atomic import require_writable, write_atomically
from svdata2vec.shards.boxes import MIN_BOX_PX, Box
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.ranges import LARGEST, check_number

PICTURE_FRAMES = 8
PICTURE_TILE = 160  # smallest side of a frame in the picture, in pixels
LINE_HEIGHT = 20


def predict(
    run: Path,
    video: Path,
    *,
    box: Box | None = None,
    poses: Path | None = None,
    whole_picture: bool = False,
    frames: Span | None = None,
    views: int | None = None,
    top: int = 5,
    picture: Path | None = None,
    device: Device = "auto",
) -> dict[str, Any]:
    """Recognise the action in a video file with the RGB classifier of a finished run.

    Args:
        box: person box (x1, y1, x2, y2) in pixels of the upright picture; the others are options of `svdata2vec predict`.

    Returns:
        {"video", "classes": [{"name", "probability"}], "did": [lines that say what was done]}.
    """
    model, config, card = load_classifier(run)
    if config.modality != "rgb":
        raise UserError(f"{run} needs skeletons (modality {config.modality}); predict takes a run with modality rgb")
    check_number("--top", top, 1, LARGEST, whole=True)
    if picture is not None and picture.suffix.lower() != ".png":
        raise UserError(f"--picture {picture}: expected a file name that ends in .png")
    if picture is not None and video.resolve() in (picture.resolve(), picture.resolve().parent):
        raise UserError(f"--picture {picture}: it would lie among the pictures of the video; choose another folder")
    require_writable(picture)
    persons = find_persons(video, box, poses, whole_picture, shown_whole(card), frames)
    data = config.data if views is None else replace(config.data, views=views)
    clip = read_clip(video, data, persons.box, card, frames, persons.held)
    where = pick_device(device)
    with torch.no_grad():
        logits_NC = model.to(where)(torch.from_numpy(clip.frames_NTSS3).to(where), None).float()
    require_finite(logits_NC.cpu().numpy(), [str(video)] * len(logits_NC))
    probability_C, number_C = logits_NC.softmax(1).mean(0).cpu().sort(descending=True)
    best = [
        {"name": card["classes"][number], "probability": probability}
        for number, probability in zip(number_C[:top].tolist(), probability_C[:top].tolist(), strict=True)
    ]
    did = _describe(clip, persons, frames, str(where))
    if picture is not None:
        write_atomically(picture, to_png(draw(clip, [f"{100 * b['probability']:5.1f} %  {b['name']}" for b in best])))
        did.append(f"wrote {picture}")
    return {"video": str(video), "classes": best, "did": did}


def _describe(clip: Clip, persons: Persons, frames: Span | None, device: str) -> list[str]:
    info, plan = clip.info, clip.plan
    (x1, y1), (x2, y2) = affine.corners(plan.output_to_source, plan.size)
    turned = f", {info.orientation}" if str(info.orientation) else ""
    region = f"the square around {persons.how}, {x1:g},{y1:g},{x2:g},{y2:g}"
    if persons.box is not None and too_small(persons.box):
        small = f" are below {MIN_BOX_PX:g} pixels" * any(persons.box)
        region = f"nothing: the whole picture, squeezed into a square, as {persons.how}{small}"
    elif persons.box is None:
        region = f"nothing: the whole picture, black beside it ({persons.how})"
    whole, numbers = ("video", "") if frames is None else ("part", f", {frames[0]} to {frames[1] - 1}")
    few = f" (the {whole} has fewer: they repeat)" if clip.num_frames < len(plan.frames_T) else ""
    cut = "" if clip.cut_short is None else f"; the file is cut short ({clip.cut_short}): what is lost was not seen"
    views = "" if len(clip.frames_NTSS3) == 1 else f"the mean over {len(clip.frames_NTSS3)} views: each "
    return [
        f"decoded {clip.num_frames} frames of {info.width}x{info.height}{turned}{numbers}{cut}",
        f"took {views}{len(plan.frames_T)} frames spread over the {whole}{few}, the same in every run",
        f"cropped {region}, resized to {plan.size}x{plan.size}",
        f"recognised on {device}",
    ]


def draw(clip: Clip, lines: list[str]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: evenly spaced frames of the first view side by side, lines of text below."""
    frames_TSS3 = clip.frames_NTSS3[0]
    count = len(frames_TSS3)
    columns = np.linspace(0, count - 1, min(PICTURE_FRAMES, count)).round().astype(int)
    scale = max(1, -(-PICTURE_TILE // clip.plan.size))
    strip = np.concatenate([frames_TSS3[t].repeat(scale, 0).repeat(scale, 1) for t in columns], axis=1)
    text = np.full((LINE_HEIGHT * len(lines) + 8, strip.shape[1], 3), 32, np.uint8)
    for number, line in enumerate(lines):
        place = (8, LINE_HEIGHT * (number + 1) - 4)
        cv2.putText(text, line, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([strip, text])
