"""Points of W+: sampling, inversion, encoders, pivotal tuning, edit directions and text-driven edits."""
