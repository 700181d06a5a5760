"""One command for a few minutes on a rented GPU: everything that can be told of it, in files that survive a kill."""
