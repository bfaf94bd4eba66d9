"""`python -m cf_utils.worlds check NAME`: measure a world, write results/worlds/<name>.json, end non-zero where a bound fails."""

from __future__ import annotations

import argparse

from cf_utils import worlds
from cf_utils.core import files
from cf_utils.training import world_card


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cf_utils.worlds", description=__doc__)
    parser.add_argument("command", choices=("check",))
    parser.add_argument("name", choices=worlds.NAMES)
    parser.add_argument("--n", type=int, default=16_000, help="training renders")
    args = parser.parse_args(argv)
    found = world_card.check(args.name, args.n)
    for label, row in found["checked"].items():
        print(
            label,
            *(f"{key} {value:.3f}" for key, value in row.items() if value is not None),
            sep="\n  ",
        )
    print(f"{found['cpu_ms_per_image']:.1f} ms an image; {found['seconds']:.0f} s")
    files.write_json(world_card.FOLDER / f"{args.name}.json", found)
    for line in found["outside"]:
        print("outside:", line)
    return bool(found["outside"])


if __name__ == "__main__":
    raise SystemExit(main())
