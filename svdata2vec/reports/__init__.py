"""Pages for people: reports of runs, and what the model sees of a data set."""
