"""All readers by name, with their options, as the command line offers them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from svdata2vec.shards.annotations import DataSet
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.readers.ntu import read_ntu_pickle, read_ntu_skeletons
from svdata2vec.shards.readers.pku import read_pku_mmd
from svdata2vec.shards.readers.pose_files import read_pose_files
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.readers.smarthome import read_smarthome
from svdata2vec.shards.readers.uav_human import read_uav_human
from svdata2vec.shards.readers.videos import read_video_csv, read_video_folder


@dataclass(frozen=True)
class Source:
    """One kind of data set. `fixed`: arguments that the kind determines; the others come from the user.

    The reader's docstring is also the help of `svdata2vec shard KIND`, its "Args" that of the options.
    """

    kind: str
    about: str
    read: Callable[..., DataSet]
    fixed: dict[str, object]

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The reader's remaining parameters; those without default are required."""
        parameters = inspect.signature(self.read).parameters
        return {name: parameter for name, parameter in parameters.items() if name not in self.fixed}


SOURCES: dict[str, Source] = {source.kind: source for source in (
    Source("ntu60", "NTU RGB+D 60, 2-D pickle", read_ntu_pickle, {"classes": 60}),
    Source("ntu120", "NTU RGB+D 120, 2-D pickle", read_ntu_pickle, {"classes": 120}),
    Source("ntu60-skeleton", "NTU RGB+D 60, raw .skeleton files", read_ntu_skeletons, {"classes": 60}),
    Source("ntu120-skeleton", "NTU RGB+D 120, raw .skeleton files", read_ntu_skeletons, {"classes": 120}),
    Source("smarthome", "Toyota Smarthome (trimmed), JSON skeletons v1.1 or v1.2", read_smarthome, {}),
    Source("uav-human", "UAV-Human, text skeletons", read_uav_human, {}),
    Source("pku-mmd", "PKU-MMD, cut by its label files", read_pku_mmd, {}),
    Source("pyskl", "Any pickle of pyskl, mmaction2 or tools/pose/extract_poses.py", read_pyskl, {}),
    Source("poses-json", "Own videos, and poses of COCO, OpenPose, AlphaPose, MMPose, YOLO, MediaPipe", read_pose_files, {}),
    Source("folder", "Own videos: class/video.mp4", read_video_folder, {}),
    Source("csv", "Own videos: a table path,label,split", read_video_csv, {}),
)}


def open_dataset(kind: str, **options: object) -> DataSet:
    """Read a data set of this kind, e.g. open_dataset("ntu60", pickle_path="ntu60_2d.pkl", videos="nturgbd_videos").

    UserError lists the kinds, or the options of the kind, if one is unknown or missing. Options that are None count as
    not given.
    """
    if kind not in SOURCES:
        raise UserError(f"unknown kind of data set {kind!r}: expected one of {', '.join(SOURCES)}")
    source = SOURCES[kind]
    given = {name: value for name, value in options.items() if value is not None}
    unknown = [name for name in given if name not in source.options]
    missing = [name for name, parameter in source.options.items()
               if parameter.default is inspect.Parameter.empty and name not in given]
    if unknown or missing:
        problem = f"does not take {unknown[0]!r}" if unknown else f"needs {missing[0]!r}"
        raise UserError(f"data set kind {kind} {problem}; its options are {', '.join(source.options)}")
    return source.read(**given, **source.fixed)
