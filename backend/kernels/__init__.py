"""The Triton kernels: one operation per file, with its launcher, its float64 reference and its compiled variants."""

# Decides compile or interpret before any file here decorates a kernel, so import order within those files is free.
from backend.kernels import _common as _common
