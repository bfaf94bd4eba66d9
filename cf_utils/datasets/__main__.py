"""`python -m cf_utils.datasets [--data DIR] [--fetch NAME]`: what is there, what is missing, and fetching what may be fetched."""

from __future__ import annotations

import argparse

from cf_utils.datasets.catalog import FETCHABLE, SETS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cf_utils.datasets", description=__doc__)
    parser.add_argument("--data", default="", help="data root; empty means the embedded default")
    parser.add_argument(
        "--fetch",
        metavar="NAME",
        choices=FETCHABLE,
        help="download this set to --data, checksums verified",
    )
    args = parser.parse_args(argv)
    if args.fetch:
        if not args.data:
            parser.error("--fetch needs --data DIR to put the files in")
        SETS[args.fetch].fetch(args.data)
    for module in SETS.values():
        s = module.status(args.data)
        print(f"{s.name:<15}{s.state:<10}{s.advice}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
