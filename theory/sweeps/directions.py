"""Whether a metric is to be minimized or maximized: stated, or plain from its name, and never guessed."""

import re
from collections.abc import Mapping, Sequence

from noisysgd.theory.common import checks

MINIMIZE, MAXIMIZE = OBJECTIVES = ("minimize", "maximize")

KINDS = {
    "loss": "loss",
    "losses": "loss",
    "error": "error",
    "errors": "error",
    "accuracy": "accuracy",
    "accuracies": "accuracy",
}
"""Words that say what a metric is."""
AFTER = {"train", "training", "test", "val", "valid", "validation", "eval", "best", "last", "final", "mean", "average"}
AFTER |= {"rate", "rates", "top", "k"}
"""Words that may follow that word without changing what it says: `test_accuracy_best`, `error_rate`."""
BEFORE = {"neg", "negative", "negated", "minus", "one", "no", "non", "anti", "inv", "inverse", "reciprocal"}
BEFORE |= {"of", "in", "gap", "drop", "gain", "change", "delta", "diff", "difference", "reduction", "improvement"}
BEFORE |= {"std", "stderr", "var", "variance"}
"""Words that make something else of it when they come before: `neg_log_loss` is maximized, `std_of_accuracy` is not."""


def kind_of(metric: str) -> str | None:
    """What a metric plainly is by its name: "loss", "error" or "accuracy", else ``None``.

    One of the three words has to be there, alone, at the end of the name but for words such as "best" or "rate":
    abbreviations, gaps between accuracies and negated losses tell nothing certain.

    >>> kind_of("train_loss"), kind_of("val/error_rate"), kind_of("testAccuracy_best")
    ('loss', 'error', 'accuracy')
    >>> kind_of("test_acc"), kind_of("accuracy_gap"), kind_of("neg_log_loss")
    (None, None, None)
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", metric)]
    at = [k for k, word in enumerate(words) if word in KINDS]
    if len(at) != 1 or BEFORE & set(words[: at[0]]) or set(words[at[0] + 1 :]) - AFTER:
        return None
    return KINDS[words[at[0]]]


def objective_of(metric: str) -> str | None:
    """Direction of a metric that plainly is a loss, an error or an accuracy by its name; ``None`` of any other.

    >>> objective_of("test_accuracy"), objective_of("train_loss"), objective_of("auc")
    ('maximize', 'minimize', None)
    """
    kind = kind_of(metric)
    return None if kind is None else MAXIMIZE if kind == "accuracy" else MINIMIZE


def stated_objective(metric: str, attributes: Mapping[str, object], given: str | None) -> str:
    """Direction of a metric: as `given`, else as its attribute says, else as its name plainly says.

    Raises
    ------
    ValueError
        If none of the three says it.

    Examples
    --------
    >>> stated_objective("auc", {"objective": "maximize"}, None)
    'maximize'
    """
    if given is not None:
        return checks.one_of("objective", given, OBJECTIVES)
    if "objective" in attributes:
        return checks.one_of(f"{metric}: attribute objective", attributes["objective"], OBJECTIVES)
    plain = objective_of(metric)
    expected = f"'minimize' or 'maximize' for {checks.shorten(metric)}, whose name is not plainly that of a loss, an "
    expected += "error or an accuracy"
    remedy = "Say which is better, or set the variable's attribute `objective`."
    checks.require(plain is not None, "objective", expected, given, remedy)
    return str(plain)


def given_objectives(metrics: Sequence[str], objective: str | Mapping[str, str] | None) -> dict[str, str]:
    """The argument `objective` of functions that make a Sweep, by metric: one word for a single metric, or a mapping.

    >>> given_objectives(["auc"], "maximize"), given_objectives(["auc", "train_loss"], {"auc": "maximize"})
    ({'auc': 'maximize'}, {'auc': 'maximize'})
    """
    if objective is None:
        return {}
    if not isinstance(objective, Mapping):
        expected = f"a mapping from metrics to directions, of the {len(metrics)} metrics"
        remedy = "Write objective={'auc': 'maximize'}."
        checks.require(len(metrics) == 1, "objective", expected, objective, remedy)
        objective = {metrics[0]: objective}
    unknown = [name for name in objective if name not in metrics]
    checks.require(not unknown, "objective", f"metrics among {list(metrics)}", unknown, "Drop the others.")
    return {name: checks.one_of(f"objective of {name}", word, OBJECTIVES) for name, word in objective.items()}
