"""`python -m cf_utils.training.recipes NAME --data DIR` re-makes a shipped checkpoint and writes its card."""

from __future__ import annotations

import argparse
from pathlib import Path

from cf_utils.models import checkpoints
from cf_utils.training.recipes import EMBEDDED, RECIPES, make
from cf_utils.training.recipes.readers import calibrate_again


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cf_utils.training.recipes", description=__doc__
    )
    parser.add_argument(
        "names",
        nargs="+",
        choices=[*sorted(RECIPES), "all"],
        help="checkpoints to make; all: the shipped ones",
    )
    parser.add_argument(
        "--data",
        default="",
        help=f"data root that holds the official files; {sorted(EMBEDDED)} read none",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume",
        type=Path,
        help="folder for training states; a killed training goes on from there",
    )
    parser.add_argument("--out", type=Path, default=checkpoints.FOLDER)
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="train nothing: a shipped oracle of factors is calibrated anew, "
        "by the prior that ships",
    )
    args = parser.parse_args(argv)
    shipped = [n for n in RECIPES if (checkpoints.FOLDER / f"{n}.json").exists()]
    for name in shipped if "all" in args.names else args.names:
        card = (
            calibrate_again(name, args.out)
            if args.calibrate
            else make(name, args.data, args.seed, args.resume and args.resume / name, args.out)
        )
        print(
            name,
            card["quality"],
            "calibrated" if args.calibrate else f"{card['training']['seconds']:.0f} s",
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
