"""Text skeletons as NTU RGB+D and, with fewer columns, UAV-Human have them."""

import numpy as np


def skeleton_text(poses: dict[str, np.ndarray], num_frames: int, columns: int, first: int) -> str:
    """A .skeleton file. `poses`: body id -> (T, V, 2), NaN rows = body absent; x, y stand at column `first`."""
    rows = [str(num_frames)]
    for t in range(num_frames):
        bodies = {body: pose[t] for body, pose in poses.items() if not np.isnan(pose[t]).all()}
        rows.append(str(len(bodies)))
        for body, joints in bodies.items():
            rows += [f"{body} 0 1 1 1 1 0 0.02 -0.3 2", str(len(joints))]
            for x, y in joints:
                words = ["0.5"] * columns
                words[first : first + 2] = [f"{x:.4f}", f"{y:.4f}"]
                rows.append(" ".join(words))
    return "\n".join(rows) + "\n"
