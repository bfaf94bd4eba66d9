"""One file a generative model."""
