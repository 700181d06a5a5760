"""From the real thing to numbers: measures a device's kernels and steps, fits profiles, says how far off they are."""
