"""Many simulations for one answer: sweeps and searches. Each single one is `sim.api`'s; nothing here knows SimPy."""
