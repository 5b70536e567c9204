"""What a trained network can do: accuracy, features, probes, prediction of single videos, export."""
