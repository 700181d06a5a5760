"""Each operation launched once and compared with its definition, so that one that fails hides no other."""
