"""One file a data set: `load(root, split)` and `status(root)`. `python -m cf_utils.datasets` prints what is there."""
