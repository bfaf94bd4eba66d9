"""One file a family of metrics; each function says definition, range, direction, source and blind spot."""
