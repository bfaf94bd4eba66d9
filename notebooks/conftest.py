"""nbval on our notebooks: progress and warnings on stderr are no part of a lesson and differ between machines."""


def pytest_collectstart(collector):
    if collector.path and collector.path.suffix == ".ipynb":
        collector.skip_compare += ("stderr",)
