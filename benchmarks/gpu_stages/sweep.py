"""The Sweep of a campaign, made by the command after the last stage."""

from pathlib import Path

from gpu_stages.rows import read_json
from noisysgd import theory


def write_sweep(out: Path) -> bool:
    """Write DIR/campaign.nc from the runs in DIR/campaign.json, and return whether there were any."""
    runs = [row for row in read_json(out / "campaign.json")["rows"] if row["what"] == "run" and "config" in row]
    if not runs:
        return False
    varied = ("batch_size", "learning_rate", "momentum", "seed")
    metrics = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "steps", "seconds")
    records = [{name: run["config"][name] for name in varied} | run for run in runs]
    shared = {name: value for name, value in runs[0]["config"].items() if name not in (*varied, "micro_batch_size")}
    sweep = theory.sweep_from_records(records, source="training", metrics=metrics, configuration=shared)
    theory.save_sweep(sweep, out / "campaign.nc")
    return True
