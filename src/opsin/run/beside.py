"""Several models on the same pictures: what each says, where they disagree, and where one is wrong with confidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opsin.bundle import Bundle
from opsin.errors import ConfigError
from opsin.results.classification import Classification
from opsin.run.predicting import PICTURES, pictures_at, predict_files

CONFIDENT = 0.8  # scores from which on a model is called confident


@dataclass(frozen=True)
class Compared:
    """One picture, seen by several models.

    Args:
        file: its name.
        answers: by model, the best classes with their scores, best first.
    """

    file: str
    answers: Mapping[str, Sequence[tuple[str, float]]]

    @property
    def agree(self) -> bool:
        """Whether all say the same class (names compared without case)."""
        return len({answer[0][0].casefold() for answer in self.answers.values()}) == 1

    @property
    def confident_disagreement(self) -> bool:
        """Whether two confident models say different classes, so that at least one is wrong with confidence."""
        sure = {answer[0][0].casefold() for answer in self.answers.values() if answer[0][1] >= CONFIDENT}
        return len(sure) > 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        models = {
            name: [{"class": label, "score": round(score, 6)} for label, score in answer]
            for name, answer in self.answers.items()
        }
        flags = {"agree": self.agree, "confident_disagreement": self.confident_disagreement}
        return {"file": self.file, "models": models, **flags}


@dataclass(frozen=True)
class SideBySide:
    """The pictures that all models answered, and those that one could not read (name to reason)."""

    pictures: Sequence[Compared]
    failed: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        found = [one.to_dict() for one in self.pictures]
        counts = {
            "disagreements": sum(not one.agree for one in self.pictures),
            "confident_disagreements": sum(one.confident_disagreement for one in self.pictures),
        }
        return {"predictions": found, **counts, "confident_from": CONFIDENT, "failed": dict(self.failed)}


def side_by_side(
    bundles: Mapping[str, Bundle], inputs: Sequence[str | Path], *, top: int = 5, device: Any = "cpu"
) -> SideBySide:
    """Show the same pictures to several models, each with its own preprocessing.

    Args:
        bundles: by the name that is shown.
        inputs: files, folders or archives.
        top: classes per model.
        device: where the models run.

    Raises:
        ConfigError: if there is no picture, or a model does not classify into exclusive classes.
    """
    full = [one for one in inputs if len(pictures_at(Path(one)))]
    if not full:
        raise ConfigError(f"No picture found in {', '.join(map(str, inputs))}.")
    answers: dict[tuple[int, str], dict[str, Sequence[tuple[str, float]]]] = {}  # by input and name
    reasons: dict[tuple[int, str], str] = {}
    for model, bundle in bundles.items():
        runner = bundle.runner(bundle.info.get("precision", "fp32"), device)
        for number, one in enumerate(full):
            found = predict_files(bundle, [one], runner=runner, write_table=False)
            reasons |= {(number, file): reason for file, reason in found.failed.items()}
            for file, result, _ in found.results:
                if not isinstance(result, Classification) or result.heads[0].multi:
                    raise ConfigError(f"{model} does not say one class per picture; --beside compares models that do.")
                answers.setdefault((number, file), {})[model] = result.top(top)
    times = Counter(file for _, file in answers.keys() | reasons.keys())

    def shown(number: int, file: str) -> str:
        if times[file] == 1:
            return file
        place = Path(full[number])
        single = place.is_file() and place.suffix.lower() in PICTURES
        return str(place if single else place / file)

    pictures = [Compared(shown(*key), said) for key, said in answers.items() if key not in reasons]
    return SideBySide(pictures, {shown(*key): reason for key, reason in reasons.items()})
