"""Studies: many runs on the same labels, compared over seeds."""
