"""What a run is told: the settings with their meaning and defaults, named presets, reading and writing them."""
