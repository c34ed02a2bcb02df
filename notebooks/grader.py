"""A template for graders: from what `autograd-bn check --json` prints to what Gradescope and nbgrader read.

Gradescope, in `run_autograder`:

    autograd-bn check --json submission/layers.py | python grader.py > /autograder/results/results.json

nbgrader, at the end of a test cell of 4 points, whose value is what the student gets:

    from grader import verdicts, points
    points(verdicts("layers.py"), "batchnorm_backward", 4)
"""

import json
import subprocess
import sys
from typing import Any

# The backward functions that are asked for, and what each is worth: edit this.
POINTS = {"affine_backward": 2, "batchnorm_backward": 4}
PART = {"right": 1.0, "convention": 1.0}  # of the points; all other verdicts give none


def verdicts(path: str) -> list[dict[str, Any]]:
    """What `check` says of each pair in a file."""
    command = [sys.executable, "-m", "autograd_bn", "check", "--json", path]
    printed = subprocess.run(command, capture_output=True, text=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def points(judged: list[dict[str, Any]], name: str, worth: float) -> float:
    """What a backward function gets."""
    return max([worth * PART.get(each["verdict"], 0.0) for each in judged if each["backward"] == name], default=0.0)


def said(judged: list[dict[str, Any]], name: str) -> str:
    """What the student reads; a repair would be the solution, so it isn't in it."""
    lines = [f"{each['verdict']}: {each['diagnosis']}".rstrip(": ") for each in judged if each["backward"] == name]
    return "\n".join(lines) or f"there is no {name} with its forward function in this file"


def gradescope(judged: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of Gradescope's results.json."""
    return {
        "tests": [
            {"name": name, "score": points(judged, name, worth), "max_score": worth, "output": said(judged, name)}
            for name, worth in POINTS.items()
        ]
    }


if __name__ == "__main__":
    json.dump(gradescope([json.loads(line) for line in sys.stdin]), sys.stdout, indent=2)
