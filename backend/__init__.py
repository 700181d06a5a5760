"""The real thing behind the simulator: kernels, a paged cache, a model and the executor that drives them."""
