"""What `autograd-bn train` reaches over five seeds: mean and spread, as a Markdown table.

python tests/bench/five_seeds.py: the paper's net with and without batch norm at the command's own settings, and the
small LeNet. Each seed has its own split, initial weights and order of the batches.
"""

import json
import subprocess
import sys
import tempfile
from statistics import mean, stdev

SEEDS = range(5)


def train(*arguments):
    """The report of one run of the command, its nets by name."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "autograd_bn", "train", "--json", "-o", f"{folder}/plot.svg", *arguments]
        report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {net["net"]: net for net in report["nets"]}


def row(name, values, digits, unit=""):
    """One line of the table."""
    each = ", ".join(f"{value:,.{digits}f}" for value in values)
    print(f"| {name} | {mean(values):,.{digits}f}{unit} | {stdev(values):,.{digits}f} | {each} |", flush=True)


def main():
    """Run and print."""
    print("| over five seeds | mean | standard deviation | each seed |\n| --- | ---: | ---: | --- |")
    reports = [train("--seed", str(seed)) for seed in SEEDS]
    without, with_norm = ([report[f"{which} batch norm"] for report in reports] for which in ("without", "with"))
    steps = [[net["steps_to_90_percent"] for net in nets] for nets in (without, with_norm)]
    row("steps to 90 %, without batch norm", steps[0], 0)
    row("steps to 90 %, with batch norm", steps[1], 0)
    row("with / without", [b / a * 100 for a, b in zip(*steps, strict=True)], 1, " %")
    row("final test accuracy, without batch norm", [net["test_accuracy"] * 100 for net in without], 1, " %")
    row("final test accuracy, with batch norm", [net["test_accuracy"] * 100 for net in with_norm], 1, " %")
    lenets = [train("--conv", "--seed", str(seed))["LeNet with batch norm"] for seed in SEEDS]
    row("final test accuracy, LeNet with batch norm", [net["test_accuracy"] * 100 for net in lenets], 1, " %")


if __name__ == "__main__":
    main()
