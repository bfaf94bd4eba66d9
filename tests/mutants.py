"""Inject known faults one by one: `python -m tests.mutants [NAME ...]`. A test must fail for each.

Each fault (`tests/faults.py`) names a function and a piece of its syntax tree, so formatting,
comments and other functions may change freely. A fault whose piece is not there exactly once is an
error. The same tests must first pass on an unchanged copy of the tree.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    "Makefile", "README.md", "ARCHITECTURE.md", "LICENSE", "pyproject.toml", "environment.yml",
    "cf_utils", "tests", "workflow", "notebooks", "docs", "results/reported", "results/checkpoints",
    "results/worlds", "results/tuning", "data/weights/thorax.safetensors",
    "data/weights/lung_ct.safetensors",
)  # fmt: skip


def mutate(source: str, fault: Fault) -> str:
    """Return `source` with the fault in it. Raises ValueError unless its piece is there once."""
    tree = ast.parse(source)
    scope = find_definition(tree, fault.where)
    replacer = _Replacer(fault.old, fault.new)
    replacer.visit(scope)
    if replacer.count != 1:
        raise ValueError(
            f"{fault.file}, {fault.where or 'module'}: {fault.old!r} is there {replacer.count} "
            "times, expected once"
        )
    return ast.unparse(ast.fix_missing_locations(tree))


def find_definition(tree: ast.Module, name: str) -> ast.AST:
    """Return the function or class with a dotted `name`, or the module for ''."""
    found: ast.AST = tree
    for part in name.split(".") if name else ():
        inside = [
            node
            for node in ast.walk(found)
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part
        ]
        if not inside:
            raise ValueError(f"{name}: there is no {part!r}")
        found = inside[0]
    return found


class _Replacer(ast.NodeTransformer):
    """Replaces one expression, or one statement, by another."""

    def __init__(self, old: str, new: str):
        before, after = ast.parse(old).body[0], ast.parse(new or "pass").body[0]
        if isinstance(before, ast.Expr):
            before, after = before.value, getattr(after, "value", after)
        self.old, self.new, self.count = ast.dump(before), after, 0

    def visit(self, node: ast.AST) -> ast.AST:
        if ast.dump(node) == self.old:
            self.count += 1
            return self.new
        return self.generic_visit(node)


def copy_tree(to: Path) -> Path:
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_build")
            shutil.copytree(ROOT / name, to / name, ignore=ignored)
        elif (ROOT / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def run_tests(
    tree: Path, selected: tuple[str, ...], stop_early: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run pytest on the copy. A selection is a file or `file::beginning of a test's name`."""
    files = sorted({s.split("::")[0] for s in selected})
    wanted = " or ".join(s.split("::")[1] for s in selected if "::" in s)
    env = os.environ | {
        "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore"]
    command += (["-x"] if stop_early else []) + (["-k", wanted] if wanted else []) + files
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)


def try_fault(name: str) -> tuple[str, str, float]:
    """Return (name, "killed" or "SURVIVED" or an error, seconds)."""
    fault, began = FAULTS[name], time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = copy_tree(Path(folder))
        try:
            text = mutate((tree / fault.file).read_text(encoding="utf-8"), fault)
        except (ValueError, SyntaxError) as e:
            return name, f"ERROR: {e}", 0.0
        (tree / fault.file).write_text(text, encoding="utf-8")
        done = run_tests(tree, fault.tests)
    verdict = {0: "SURVIVED", 1: "killed"}.get(done.returncode)
    verdict = verdict or f"ERROR: pytest ended with {done.returncode}\n{done.stdout[-2000:]}"
    if verdict == "killed" and "error during collection" in done.stdout:
        verdict = "ERROR: the mutated file cannot be imported"
    return name, verdict, time.perf_counter() - began


def check_unchanged_copy(chosen: list[str]) -> str:
    """Return what is wrong with the tests without any fault, or ''."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = copy_tree(Path(folder))
        where = subprocess.run(
            [sys.executable, "-c", "import cf_utils; print(cf_utils.__file__)"],
            cwd=tree,
            text=True,
            env=os.environ | {"PYTHONPATH": str(tree)},
            capture_output=True,
        ).stdout
        if not Path(where.strip()).is_relative_to(tree):
            return f"the tests would not see the copy: cf_utils is {where}"
        done = run_tests(tree, tuple(sorted({s for n in chosen for s in FAULTS[n].tests})))
    return f"without a fault the tests fail:\n{done.stdout[-4000:]}" if done.returncode else ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="faults to try (default: all)")
    parser.add_argument("-j", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - FAULTS.keys():
        parser.error(f"unknown: {sorted(unknown)}; known: {sorted(FAULTS)}")
    chosen = args.names or list(FAULTS)
    if args.list:
        print(*chosen, sep="\n")
        return 0
    if wrong := check_unchanged_copy(chosen):
        print(wrong, file=sys.stderr)
        return 2
    survived = 0
    with ThreadPoolExecutor(args.j) as pool:
        for name, verdict, seconds in pool.map(try_fault, chosen):
            survived += verdict != "killed"
            print(f"{name:<45}{verdict:<10}{seconds:6.1f} s", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} killed")
    return int(survived > 0)


if __name__ == "__main__":
    raise SystemExit(main())
