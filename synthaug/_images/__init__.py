"""Real images in: the only package that knows the types of other libraries' data sets."""
