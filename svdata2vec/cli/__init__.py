"""The command `svdata2vec`."""
