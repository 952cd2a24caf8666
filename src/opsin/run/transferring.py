"""Transfer in a run: the recipe's plan applied to model, optimizers and head."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from opsin.data.dataset import Dataset
from opsin.engine.events import Noted, Stream
from opsin.engine.loop import Stage
from opsin.engine.optimizers import build_optimizer
from opsin.errors import ConfigError, TrainingError
from opsin.models.weights import Report, head_of
from opsin.recipe import Layer, Recipe
from opsin.task import Task
from opsin.transfer import plans
from opsin.transfer.bottleneck import features_of
from opsin.transfer.features import last_layer

# Small steps that suit weights that are good already; what a person or a named recipe sets wins.
DEFAULTS = {
    "optimizer": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05, "clip_norm": 1.0},
    "schedule": {"name": "cosine", "warmup_epochs": 0.5},
    "run": {"batch_size": 32},
}


def transfer_defaults(layers: Sequence[Layer]) -> list[Layer]:
    """The weakest layer of settings, where a transfer plan is chosen."""
    chosen = [layer.values["transfer"] for layer in layers if "transfer" in layer.values]
    plan = next((section["plan"] for section in reversed(chosen) if "plan" in section), "none")
    if plan == "none" and not any(section.get("stages") for section in chosen):
        return []
    return [Layer(f"transfer plan {plan}", DEFAULTS)]


class Transfer:
    """A recipe's transfer plan, or none.

    Args:
        recipe: of the run.
        trained: whether the network is a person's own module, which may come with weights.

    Raises:
        ConfigError: if the plan needs weights and none are given, or settings contradict each other.
    """

    def __init__(self, recipe: Recipe, trained: bool = False) -> None:
        self.recipe, self.settings = recipe, recipe.transfer
        self.on = self.settings.plan != "none" or bool(self.settings.stages)
        self.fits_features = self.on and plans.fits_features(self.settings)
        self.new_head = self.on and self.settings.head != "keep"
        self.keeps_head = self.on and self.settings.head == "keep"
        self.judged_first = self.on and (self.fits_features or self.settings.head == "keep")
        if self.on and recipe.model.bias_prior and (self.fits_features or self.keeps_head):
            raise ConfigError("model.bias_prior and this plan both set the head's bias. Leave model.bias_prior out.")
        if self.on and recipe.model.weights == "none" and not trained:
            raise ConfigError(
                "There is nothing to transfer: a plan (--transfer) needs weights to start from. Name them: --weights "
                "NAME|FILE"
            )
        own = {"recipe", "task"}  # what is not a person's
        typed = {recipe.sources.get(key, "recipe").partition(" ")[0] for key in ("run.epochs", "run.minutes")} - own
        if self.without_steps and typed:
            raise ConfigError(
                "The plan 'head' fits the last layer to features that are computed once, and takes no epochs. Leave "
                "--epochs and --minutes out, or train it in steps with augmentation: transfer.head=steps"
            )

    def check_head(self, network: nn.Module, report: Report) -> None:
        """See that a head that should be kept came with the weights.

        Raises:
            ConfigError: if it did not.
        """
        lost = sorted(head_of(network) - {name.removeprefix("net.") for name in report.loaded} - set(report.loaded))
        if self.on and self.settings.head == "keep" and lost:
            raise ConfigError(
                f"transfer.head = 'keep', but the weights have no head of this size ({', '.join(lost)}). Leave it out to "
                "begin with a new one."
            )

    def adapt(self, network: nn.Module) -> None:
        """Give the network the new parameters that the plan needs."""
        if self.on:
            plans.adapt(network, self.settings)

    def stages(self, model: nn.Module, epochs: int) -> tuple[Stage, ...]:
        """The plan's stages; none without a plan."""
        return plans.engine_stages(model, self.settings, epochs, self.recipe.run.patience) if self.on else ()

    @property
    def without_steps(self) -> bool:
        """Whether fitting the head to features is all there is to do."""
        return self.on and not plans.stages_of(self.settings)

    def largest(self, model: nn.Module) -> int:
        """The stage that trains most, by which memory is measured."""
        if not self.on:
            return 0
        counts = [len(plans.prepared(model, self.settings, stage).rates) for stage in plans.stages_of(self.settings)]
        return int(np.argmax(counts)) if counts else 0

    def optimizers(self, task: Task[Any], model: nn.Module, stage: int) -> dict[str, torch.optim.Optimizer]:
        """Make what a stage trains trainable, and build the optimizers over exactly that.

        Raises:
            TrainingError: if an optimizer would not hold exactly the trainable parameters.
        """
        rates = None
        if self.on:
            stages = plans.stages_of(self.settings) or plans.stages_of(
                self.settings.model_copy(update={"head": "steps"})
            )
            rates = plans.begin(model, self.settings, stages[stage])
        settings, batch_size = self.recipe.optimizer, self.recipe.run.batch_size
        built = {
            phase: build_optimizer(settings, task.parameters(model, phase), batch_size, rates) for phase in task.phases
        }
        held = {id(p) for one in built.values() for group in one.param_groups for p in group["params"]}
        trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        if self.on and held != set(trainable):
            lost = [name for key, name in trainable.items() if key not in held]
            raise TrainingError(f"The optimizer does not hold what the plan trains: {', '.join(lost[:5])}.")
        return built

    def fit_head(
        self, task: Task[Any], model: nn.Module, dataset: Dataset, indices: NDArray[np.int64], stream: Stream
    ) -> float:
        """Fit the last layer to the features of the training pictures, where the plan begins so; returns the seconds.

        Raises:
            ConfigError: if the task has no such fit.
        """
        if not self.fits_features:
            return 0.0
        started, found = time.monotonic(), self._last_layer(model)
        cached = features_of(task, model, dataset, indices)
        fitted = task.fit_head(cached.features.values, dataset, indices)
        if fitted is None:
            raise ConfigError(
                f"The task '{self.recipe.task_name}' has no fit of its head. Train it: transfer.head=steps"
            )
        weight, bias, words = fitted
        with torch.no_grad():
            found.weight.copy_(torch.from_numpy(weight))
            found.bias.copy_(torch.from_numpy(bias))
        source = "from the cache" if cached.hit else "computed"
        seconds = time.monotonic() - started
        text = f"{words}; features {source}, {seconds:.1f} s"
        stream(Noted("head-fitted", f"The last layer was fitted: {text}."))

        return seconds

    def check(self, task: Task[Any], model: nn.Module) -> None:
        """Find what is wrong with a plan before anything dear is computed.

        Raises:
            ConfigError: if a stage names what is not there, or the last layer cannot be fitted to features.
        """
        for stage in range(len(self.stages(model, 1))):
            self.optimizers(task, model, stage)
        if self.fits_features:
            self._last_layer(model)

    @staticmethod
    def _last_layer(model: nn.Module) -> nn.Linear:
        found = last_layer(model)
        if found is None or found[1].bias is None:
            raise ConfigError(
                "The answers of this network do not come from one last linear layer with a bias, so it cannot be fitted to "
                "features. Train it in steps: transfer.head=steps"
            )
        return found[1]

    def finish(self, model: nn.Module) -> None:
        """Leave the model as any other: changes merged into the weights, modules following train() and eval()."""
        if self.on:
            plans.finish(model)
