"""Measure a recipe: train each seed, judge it once on the sealed test part, store the mean with its interval.

python benchmarks/recipe.py fashion-small --data PATH [--seeds 3]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from recorded import record

from opsin.metrics.repeats import summarize_repeats
from opsin.recipe import Layer
from opsin.run import start
from opsin.run.evaluating import evaluate_run
from opsin.run.settings import recipe_layer, recipes


def main() -> None:
    """Read the command line, train, judge, store."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("name", choices=list(recipes))
    words.add_argument("--data", required=True)
    words.add_argument("--seeds", type=int)
    words.add_argument("--first-seed", type=int, default=0)
    words.add_argument("--out", help="keep the runs here")
    given = words.parse_args()
    recipe = recipes.get(given.name)()
    seeds = given.seeds or recipe.seeds
    out = Path(given.out or tempfile.mkdtemp(prefix="opsin-recipe-"))
    runs = []
    for seed in range(given.first_seed, given.first_seed + seeds):
        layers = [
            recipe_layer(recipe.task, given.name),
            Layer("benchmark", {"data": {"path": given.data}, "run": {"seed": seed}}),
        ]
        run = start(recipe.task, layers, out=out / f"{given.name}-{seed}")
        found = evaluate_run(run, with_baselines=seed == given.first_seed)
        state = run.state
        runs.append(
            {
                "seed": seed,
                "test": found["metrics"][recipe.metric],
                "val": state["validation"][recipe.metric]["value"],
                "train": state["train"].get(recipe.metric),
                "minutes": state["seconds"] / 60,
                "parameters": state["parameters"],
                "epochs": state["effective"]["epochs"],
                "baselines": {
                    name: one["metrics"][recipe.metric]["value"] for name, one in found.get("baselines", {}).items()
                },
            }
        )
        values = [one["test"]["value"] for one in runs]
        summary = summarize_repeats(values).to_dict() if len(values) > 1 else {"mean": values[0], "n": 1}
        longest = max(one["minutes"] for one in runs)
        record(
            f"recipe-{given.name}",
            {
                "metric": recipe.metric,
                "bar": recipe.bar,
                "source": recipe.source,
                "bar_minutes": recipe.minutes,
                "met": summary["mean"] >= recipe.bar and (recipe.minutes is None or longest <= recipe.minutes),
                "summary": summary,
                "longest_minutes": longest,
                "runs": runs,
            },
            f"python benchmarks/recipe.py {given.name} --data {Path(given.data).name} --seeds {seeds}",
        )
        print(
            f"{given.name} seed {seed}: test {values[-1]:.4f}, mean {summary['mean']:.4f} (bar {recipe.bar}), {runs[-1]['minutes']:.1f} min"
        )


if __name__ == "__main__":
    main()
