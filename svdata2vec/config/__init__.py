"""Settings of runs: their meaning and defaults, named presets, reading and writing them."""
