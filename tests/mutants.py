"""Known faults, put in one by one: `python -m tests.mutants [NAME ...]`. A test must fail for each, or this ends non-zero.

The tree is copied to a temporary folder; a fault is a text that must stand there exactly once and what replaces it, so a fault
that the code has outgrown is an error, not a pass. The same tests must pass on the unchanged copy first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GRADUAL, OBJECTIVE, IO = (
    "cf_utils/explainers/gradual.py",
    "cf_utils/explainers/shared/objective.py",
    "cf_utils/core/files.py",
)
BATCHES, PASSES, CHECKS, EXPLAINER, RESULT, RUNTIME = (
    f"cf_utils/core/{name}.py"
    for name in ("batches", "pass_counter", "checks", "explainer", "result", "runtime")
)
MNIST, JOB, RESULTS = (
    "cf_utils/datasets/mnist.py",
    "cf_utils/harness/parameters.py",
    "cf_utils/harness/results.py",
)
WORDS, LIMITS, TABULAR = (
    "cf_utils/explainers/gradual_words.py",
    "cf_utils/core/constraints.py",
    "cf_utils/evaluation/metrics/tabular.py",
)
SPHERES = "cf_utils/explainers/growing_spheres.py"
G, C = "tests/test_gradual.py::test_", "tests/test_core.py::test_"
ACE, INPAINT, A = (
    "cf_utils/explainers/ace.py",
    "cf_utils/explainers/shared/inpaint.py",
    "tests/test_ace.py::test_",
)
PRIOR, DDPM = "cf_utils/explainers/shared/diffusion.py", "cf_utils/models/generators/diffusion.py"
TRUE_SET, T = "cf_utils/evaluation/truth/localization.py", "tests/test_localization.py::test_"
W, L = "tests/test_words.py::test_", "tests/test_constraints.py::test_"
RANKING, SEARCH, S = (
    "cf_utils/explainers/shared/ranking.py",
    "cf_utils/explainers/shared/search.py",
    "tests/test_search.py::test_",
)
LEFT = (
    "Makefile",
    "README.md",
    "ARCHITECTURE.md",
    "LICENSE",
    "pyproject.toml",
    "environment.yml",
    "cf_utils",
    "tests",
    "workflow",
    "notebooks",
    "results/reported",
    "results/checkpoints",
)


class Fault(NamedTuple):
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = {
    "Adam without its bias correction": Fault(
        SEARCH, "bias1 / bias2.sqrt() / size", "1 / size", (f"{S}adam_equals_torch",)
    ),
    "Adam's moments stay with items that left": Fault(
        SEARCH,
        '            elif hasattr(value, "keep"):\n                value.keep(stay)\n',
        "",
        (f"{S}keep_shortens_every_field", f"{G}the_search_equals_algorithm_1"),
    ),
    "logit term removed": Fault(
        OBJECTIVE,
        "return distance(logits, mean)",
        "return distance(logits, mean, 0.0)",
        (f"{G}class_term_equals_loops",),
    ),
    "norm inside the class sum by default": Fault(
        OBJECTIVE,
        "return distance(logits, mean)",
        "return (logits - mean).sum(1).abs(), torch.ones_like(logits)",
        (f"{G}class_term_equals_loops",),
    ),
    "distance term removed": Fault(
        GRADUAL, "_term(z, x, self.lam, ", "_term(z, x, 0.0, ", (f"{G}distance_term_equals_loops",)
    ),
    "total variation dropped": Fault(
        GRADUAL, "self.eta if z.ndim == 4 else 0.0", "0.0", (f"{G}total_variation_equals_loops",)
    ),
    "mask ignored": Fault(
        GRADUAL,
        "        state.gradient.mul_(state.mask)\n",
        "",
        (f"{G}the_search_equals_algorithm_1",),
    ),
    "values outside the mask written": Fault(
        GRADUAL,
        "changed = (state.mask[at] > 0) & ~per_item(",
        "changed = ~per_item(",
        (f"{G}masked_values_slightly_outside",),
    ),
    "mean instead of sum over the batch": Fault(
        GRADUAL,
        "state.gradient += f.grad(logits, point, by_logits)",
        "state.gradient += f.grad(logits, point, by_logits / len(by_logits))",
        (f"{G}an_item_does_not_depend_on_its_batch",),
    ),
    "noise by batch position": Fault(
        RUNTIME,
        'f"{seed}|{i}|{stream}"',
        'f"{seed}|{len(rows)}|{stream}"',
        (f"{C}noise_depends_on_seed_id_and_stream_alone",),
    ),
    "composite by batch position": Fault(
        GRADUAL,
        'names = ids if self.noise == "item"',
        'names = [str(k) for k in range(len(x))] if self.noise == "item"',
        (f"{G}an_item_does_not_depend_on_its_batch",),
    ),
    "Adam not restarted": Fault(
        GRADUAL,
        "state.adam.restart(at, delay=1)",
        "state.adam.count[at] = -1",
        (f"{G}adam_restarts_with_each_block",),
    ),
    "flatness measured against the last block": Fault(
        GRADUAL,
        "state.lowest[at], state.since[at] = torch.inf, 0",
        "state.since[at] = 0",
        (f"{G}the_search_equals_algorithm_1",),
    ),
    "clamp ignored": Fault(
        GRADUAL,
        "            state.z.clamp_(*state.bounds)\n",
        "            pass\n",
        (f"{G}clamp_and_its_absence",),
    ),
    "tau ignored": Fault(
        GRADUAL,
        "        hit &= target_score(logits, state.target) >= tau\n",
        "",
        (f"{G}a_path_to_a_high_tau", f"{G}the_search_equals_algorithm_1"),
    ),
    "signed instead of absolute gradient": Fault(
        RANKING,
        "log_score.sum(), z).abs(), ",
        "log_score.sum(), z), ",
        (f"{G}rank_gives_the_order",),
    ),
    "already-target items searched": Fault(
        EXPLAINER, "todo = (~done & ~broken)", "todo = (~broken)", (f"{G}items_at_their_target",)
    ),
    "failures dropped": Fault(
        BATCHES,
        "parts.append(part)",
        "parts.append(part.select(part.reached))",
        (f"{C}failures_are_kept",),
    ),
    "failures not flagged": Fault(
        EXPLAINER,
        "valid = (logits.argmax(1) == target) & score.isfinite()",
        "valid = score.isfinite()",
        (f"{G}a_spent_budget_is_a_flagged_failure",),
    ),
    "passes not counted": Fault(
        PASSES, "        self._pending[1] += 1\n", "", (f"{G}passes_equal_those_that_hooks_count",)
    ),
    "training mode not put back": Fault(
        PASSES,
        "            m.training = training\n",
        "            pass\n",
        (f"{G}parameters_gradients_and_mode",),
    ),
    "other settings joined": Fault(
        RESULT,
        "if (first.settings, first.seed) != (part.settings, part.seed):",
        "if False:",
        (f"{C}results_that_do_not_fit",),
    ),
    "batches of another setting read": Fault(
        BATCHES,
        "key = files.sha256(setting, x[rows]",
        "key = files.sha256(x[rows]",
        (f"{C}stored_batches_are_read",),
    ),
    "normalised images accepted": Fault(
        CHECKS,
        "if (x < low - 1e-6).any() or (x > high + 1e-6).any():",
        "if False:",
        (f"{C}bad_input_is_named",),
    ),
    "half-written files": Fault(
        IO,
        "part = _part_name(path)",
        "part = path",
        ("tests/test_io.py::test_a_file_is_the_old_one_or_the_new_one",),
    ),
    "weights of another card loaded": Fault(
        "cf_utils/models/checkpoints.py",
        "if (found := files.sha256(path)) != card.sha256:",
        "if False:",
        ("tests/test_checkpoints.py::test_a_checkpoint_missing",),
    ),
    "digits not verified": Fault(
        MNIST,
        "if (found := hashlib.md5(raw).hexdigest()) != md5:",
        "if False:",
        ("tests/test_mnist.py::test_a_damaged_file_is_named",),
    ),
    "training saw embedded digits": Fault(
        MNIST,
        'is_embedded if split == "validation" else ~is_embedded',
        "is_embedded | ~is_embedded",
        ("tests/test_mnist.py::test_official_layout",),
    ),
    "status does not look inside": Fault(
        MNIST,
        "_check_header(name, _find_file(folder, name))",
        "_find_file(folder, name)",
        ("tests/test_mnist.py::test_status_looks_inside",),
    ),
    "average not updated": Fault(
        "cf_utils/training/loop.py",
        "average.update_parameters(owner)",
        "pass",
        ("tests/test_training.py::test_moving_average_by_hand",),
    ),
    "misspelt parameter accepted": Fault(
        JOB,
        "if unknown := sorted(given.keys() - known.keys()):",
        "if unknown := []:",
        ("tests/test_run.py::test_bad_input_is_refused_before_any_work",),
    ),
    "a claim's bound turned round": Fault(
        RESULTS,
        "ok = value is not None and low <= value <= high",
        "ok = value is not None and low <= value >= high",
        ("tests/test_results.py::test_a_claim", "tests/test_results.py::test_a_failed_claim"),
    ),
    "vectors not replaced by words": Fault(
        WORDS,
        "real[moved] = words[find_nearest(",
        "real[moved] = real[moved]  # words[find_nearest(",
        (f"{W}changed_words_are_real",),
    ),
    "padding becomes a word": Fault(
        WORDS,
        "return (x == 0).all(2)",
        "return (x == 7).all(2)",
        (f"{W}changed_words_are_real", f"{W}the_search_equals_loops"),
    ),
    "shortlist not scored again": Fault(
        WORDS,
        "lowest, j = losses.nan_to_num(nan=torch.inf).min(1)",
        "lowest, j = losses[:, 0], torch.zeros(len(losses), dtype=torch.int64)",
        (f"{W}the_search_equals_loops",),
    ),
    "word that gains least is unmasked": Fault(
        WORDS,
        "best = torch.cat([(-part @",
        "best = torch.cat([(part @",
        (f"{W}the_search_equals_loops",),
    ),
    "noise by how far a review is padded": Fault(
        WORDS,
        'names = [f"{i}|{p}" for i in',
        'names = [f"{i}|{p - x.shape[1]}" for i in',
        (f"{W}a_review_does_not_depend",),
    ),
    "immutable features move": Fault(
        LIMITS,
        "return torch.where(immutable, x, low), torch.where(immutable, x, high)",
        "return low, high",
        (f"{L}a_snapped_row_keeps",),
    ),
    "whole numbers are not kept": Fault(
        LIMITS,
        "at = torch.where(grid, torch.where(is_own, x, point.to(y)), at)",
        "pass",
        (f"{L}a_snapped_row_keeps",),
    ),
    "constraints not verified": Fault(
        EXPLAINER,
        "if not allowed.all():",
        "if False:",
        (f"{L}a_method_that_breaks_them",),
    ),
    "probe looks one way only": Fault(
        RANKING,
        "for level in torch.linspace(0, 1, N_PROBES).tolist():",
        "for level in (1.0,):",
        (f"{L}a_probe_is_the_best",),
    ),
    "features that fall are not counted": Fault(
        "cf_utils/evaluation/metrics/decision.py",
        "changed = ((counterfactual - query).abs() >= ",
        "changed = ((counterfactual - query) >= ",
        ("tests/test_metrics_tabular.py::test_features_that_fall",),
    ),
    "neighbours of another decision": Fault(
        TABULAR,
        "(decision[rows, None] == decision)",
        "(decision[rows, None] == decision[rows, None])",
        ("tests/test_metrics_tabular.py::test_failed_duplicate",),
    ),
    "coherence's duplicates": Fault(
        TABULAR,
        "near &= (distance > 0) & ",
        "near &= ",
        (
            "tests/test_metrics_tabular.py::test_failed_duplicate",
            "tests/test_metrics_tabular.py::test_coherence_equals",
        ),
    ),
    "rows of a table split by position": Fault(
        "cf_utils/datasets/tabular.py",
        'hashlib.sha256(f"row {i}".encode()).digest()',
        "i",
        ("tests/test_credit.py::test_german_credit_is_whole_and_fixed",),
    ),
    "draws uniform in the radius": Fault(
        SPHERES, "** (1 / d)", "** 1.0", ("tests/test_growing_spheres.py::test_draws_are_uniform",)
    ),
    "a vector's cache by its stem": Fault(
        "cf_utils/datasets/glove.py",
        'cache / f"{file.name}-{key}.npy"',
        'cache / f"{file.name}.npy"',
        ("tests/test_texts.py::test_a_file_is_parsed_once",),
    ),
    "ACE: gradient past the filter": Fault(
        ACE,
        "filtered = chain.filter(x_prime, self.steps, noise)",
        "filtered = chain.filter(x_prime.detach(), self.steps, noise) + x_prime - x_prime.detach()",
        (f"{A}the_attack_minimises_equation_3",),
    ),
    "ACE: distance dropped": Fault(
        ACE, " + self.lam * self._distance(x_prime - state.query)", "", (f"{A}the_distance_limits",)
    ),
    "ACE: mean instead of sum over the batch": Fault(
        ACE,
        "f.grad(loss.sum(), x_prime)",
        "f.grad(loss.mean(), x_prime)",
        (f"{A}an_item_does_not_depend",),
    ),
    "ACE: the same noise at all iterations": Fault(
        ACE, '"attack" if self.common_noise', '"attack" if True', (f"{A}common_noise_is",)
    ),
    "ACE: an item leaves one step late": Fault(
        ACE,
        "torch.where(per_item(leave, x_prime), x_prime, moved)",
        "moved",
        (f"{A}items_leave_the_attack",),
    ),
    "ACE: NaN not seen": Fault(
        ACE,
        "broken = ~(logits.isfinite().all(1) & gradient.flatten(1).isfinite().all(1))",
        "broken = logits[:, 0] > torch.inf",
        (f"{A}an_item_with_nan",),
    ),
    "ACE: F-CE by re-spaced steps": Fault(
        ACE, ".t[steps - 1] + 1", ".t[0] + steps", (f"{A}stages_share",)
    ),
    "ACE: another attack's pre-explanation": Fault(
        PRIOR, "images[rows].to(x)", "images[: len(rows)].to(x)", (f"{A}stages_share",)
    ),
    "ACE: another query's pre-explanation": Fault(
        PRIOR, "if not same.all():", "if False:", (f"{A}results_of_other_items",)
    ),
    "ACE: zero edit masked by nothing": Fault(
        ACE,
        "change_mask(x, filtered, self.threshold",
        "change_mask(x, x, self.threshold",
        (f"{A}zero_edit_repaints",),
    ),
    "DiME: zero edit with other noise": Fault(
        "cf_utils/explainers/dime.py",
        "        number: int = 0,\n",
        "        number: int = 1,\n",
        ("tests/test_dime.py::test_zero_edit_equals",),
    ),
    "v: the loss of the noise": Fault(
        DDPM,
        "error = error / s.abar.to(error)[k]",
        "pass",
        ("tests/test_ddpm.py::test_the_loss_of_v",),
    ),
    "v taken for the noise": Fault(
        "cf_utils/models/generators/schedule.py",
        "return _at(self.sigma, k, z) * z + _at(self.abar.sqrt(), k, z) * v",
        "return v",
        ("tests/test_ddpm.py::test_a_network_that_says_v",),
    ),
    "tuning: left while it can win": Fault(
        "cf_utils/training/tuning/record.py",
        '(row[name] * row["measured"] + remaining) / n < least',
        "row[name] < least",
        ("tests/test_tuning.py::test_leaving_settings_early",),
    ),
    "weakest part of a region first": Fault(
        TRUE_SET, "argsort(descending=True)", "argsort()", (f"{T}decisive_regions",)
    ),
    "all parts of a region decide": Fault(
        TRUE_SET,
        "unions[enough[0] if len(enough) else n - 1]",
        "unions[n - 1]",
        (f"{T}decisive_regions",),
    ),
    "parts of a region that touch at a corner are two": Fault(
        TRUE_SET,
        "structure=np.ones((3, 3))",
        "structure=None",
        (f"{T}decisive_regions",),
    ),
    "pixels beside a region counted outside": Fault(
        TRUE_SET, "(~inside & ~ignored)", "(~inside)", (f"{T}ignored_pixels",)
    ),
    "a category read in part": Fault(
        "cf_utils/evaluation/truth/displacement.py",
        "self.moved[:, at].any(1) & read, read",
        "self.moved[:, at].any(1), read",
        ("tests/test_truth.py::test_category_with",),
    ),
    "mask not dilated": Fault(
        INPAINT, "dilation, 1, dilation // 2)", "1)", (f"{A}the_mask_equals_brute",)
    ),
    "query pasted at the end only": Fault(
        INPAINT,
        "z = torch.where(mask, z, schedule.add_noise(z0, k, query_noise(k)))",
        "pass",
        (f"{A}inpainting_pastes",),
    ),
    "query not pasted at the end": Fault(
        INPAINT,
        "return torch.where(mask, to_image(z).clamp(0, 1), query)",
        "return to_image(z).clamp(0, 1)",
        (f"{A}inpainting_keeps",),
    ),
}


def copy(to: Path) -> Path:
    for name in LEFT:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                to / name,
                ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
            )
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, to / name)
    return to


def tests(tree: Path, selected: tuple[str, ...], first: bool = True) -> subprocess.CompletedProcess:
    """pytest on the copy. A selection is a file, or the beginning of a test's name: `file::test_beginning`."""
    files = sorted({s.split("::")[0] for s in selected})
    wanted = " or ".join(s.split("::")[1] for s in selected if "::" in s)
    env = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore",
            *(["-x"] if first else []),
            *(["-k", wanted] if wanted else []),
            *files,
        ],
        cwd=tree,
        env=env,
        capture_output=True,
        text=True,
    )


def try_one(name: str) -> tuple[str, str, float]:
    """(name, 'killed' or 'SURVIVED' or what went wrong, seconds)"""
    fault, began = FAULTS[name], time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = copy(Path(folder))
        text = (tree / fault.file).read_text(encoding="utf-8")
        if (count := text.count(fault.old)) != 1:
            return name, f"ERROR: its text stands {count} times in {fault.file}, expected once", 0.0
        (tree / fault.file).write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        done = tests(tree, fault.tests)
    verdict = {0: "SURVIVED", 1: "killed"}.get(done.returncode)
    verdict = verdict or f"ERROR: pytest ended with {done.returncode}\n{done.stdout[-2000:]}"
    if verdict == "killed" and (
        "SyntaxError" in done.stdout or "error during collection" in done.stdout
    ):
        verdict = "ERROR: the fault is no valid Python"
    return name, verdict, time.perf_counter() - began


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="faults to try (default: all)")
    parser.add_argument(
        "-j", type=int, default=os.cpu_count() or 1, help="at once (default: one a core)"
    )
    parser.add_argument("--list", action="store_true", help="name them and stop")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - FAULTS.keys():
        parser.error(f"unknown: {sorted(unknown)}; known: {sorted(FAULTS)}")
    chosen = args.names or list(FAULTS)
    if args.list:
        print(*chosen, sep="\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = copy(Path(folder))
        where = subprocess.run(
            [sys.executable, "-c", "import cf_utils; print(cf_utils.__file__)"],
            cwd=tree,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tree)},
            capture_output=True,
        ).stdout
        if not Path(where.strip()).is_relative_to(tree):
            print(f"the tests would not see the copy: cf_utils is {where}", file=sys.stderr)
            return 2
        sound = tests(tree, tuple(sorted({s for n in chosen for s in FAULTS[n].tests})))
    if sound.returncode:
        print(f"without a fault the tests fail already:\n{sound.stdout[-4000:]}", file=sys.stderr)
        return 2
    bad = 0
    with ThreadPoolExecutor(args.j) as pool:
        for name, verdict, seconds in pool.map(try_one, chosen):
            bad += verdict != "killed"
            print(f"{name:<45}{verdict:<10}{seconds:6.1f} s", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} killed")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
