"""nbval compares the output of claims only: stderr holds progress bars and warnings."""


def pytest_collectstart(collector):
    if collector.path and collector.path.suffix == ".ipynb":
        collector.skip_compare += ("stderr",)
