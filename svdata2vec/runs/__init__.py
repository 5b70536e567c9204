"""One run's process and its folder: device and ranks, loaders, checkpoints, published weights, log."""
