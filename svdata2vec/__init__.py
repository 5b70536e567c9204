"""SV-data2vec: self-supervised pretraining on video + skeletons at the speed of the GPU.

The sub-packages `svdata2vec.shards`, `svdata2vec.pipeline` and `svdata2vec.kernels` are the top-level folders of the
repository, reached through relative symlinks (see README, "Layout").
"""

__version__ = "0.2.0"
