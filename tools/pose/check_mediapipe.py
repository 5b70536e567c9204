#!/usr/bin/env python
"""Real joints on a real person: a photograph moves through a video, `extract_poses.py --model mediapipe` finds its person.

    bash tools/pose/check_mediapipe.sh [FOLDER]

makes the environment, runs this file in it and packs the result. The photograph is NASA's of the astronaut Eileen Collins,
which scikit-image contains; the positions of her face and shoulder were measured in the picture by eye.
"""

import argparse
import pickle
import sys
from pathlib import Path

import av
import numpy as np
from extract_poses import main as extract

from svdata2vec.shards.layouts import COCO17

FRAMES, SIDE, STEP = 12, 384, 4  # the window of the photograph that is shown, and by how many pixels it moves per frame
LEFT, TOP = 20, 10  # of the first window
# Joint of COCO-17 -> x, y in the photograph of 512x512 and tolerance in pixels: nose, eyes (41 px apart), left shoulder
# (under a wide suit).
BY_EYE = {0: (224, 123, 16), 1: (245, 103, 16), 2: (204, 101, 16), 5: (325, 258, 40)}


def main(folder: Path) -> int:
    """0 if the joints are in the right place in every frame."""
    video = folder / "videos" / "portrait" / "astronaut.mp4"
    video.parent.mkdir(parents=True, exist_ok=True)
    write(video)
    status = extract([str(folder / "videos"), "--model", "mediapipe", "--out", str(folder / "poses.pkl"), "--batch", "4"])
    if status:
        return status
    (entry,) = pickle.loads((folder / "poses.pkl").read_bytes())["annotations"]
    joints_TVC = np.asarray(entry["keypoint"], np.float32)[0]
    corner_T12 = np.array([[[LEFT + STEP * t, TOP]] for t in range(FRAMES)])
    by_eye_V3 = np.array(list(BY_EYE.values()))
    distance_TV = np.linalg.norm(joints_TVC[:, list(BY_EYE)] - (by_eye_V3[:, :2] - corner_T12), axis=-1)
    for number, (joint, (*_, near)) in enumerate(BY_EYE.items()):
        print(f"{COCO17.joints[joint]}: up to {distance_TV[:, number].max():.1f} px from where it is, expected at most {near}")
    return int(entry["keypoint"].shape != (1, FRAMES, 17, 2) or bool((distance_TV > by_eye_V3[:, 2]).any()))


def write(path: Path) -> None:
    """The video: a window that moves to the right over the photograph."""
    from skimage import data  # in .venv-mediapipe alone

    photograph = data.astronaut()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "16"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for t in range(FRAMES):
            x = LEFT + STEP * t
            window = np.ascontiguousarray(photograph[TOP : TOP + SIDE, x : x + SIDE])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for the video and the poses found in it")
    sys.exit(main(parser.parse_args().folder))
