"""Other people's measurements as profiles: read, checked against the chip, told how much to trust. Measures nothing."""
