"""One file per data set, with `load(root, split)` and `status(root)`; `catalog.SETS` lists them."""
