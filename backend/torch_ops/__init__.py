"""The operations in plain torch, for the CPU: one file per operation, the same signatures as `backend.kernels`."""
