"""How fast each stage is, and what bounds a run."""
