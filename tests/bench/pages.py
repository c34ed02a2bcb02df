"""Processor seconds to write a page, seconds until it is shown, and milliseconds a step, in Chromium.

`python -m tests.bench.pages`
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

import autograd_bn as ag
from tests.bench.pictures import chain, recurrent, residual
from tests.test_page import CHROMIUM

DRAWN = "await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
STEPS = f"""async () => {{
  const taken = [];
  for (let i = 0; i < 100; i += 1) {{
    const start = performance.now();
    document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key: "n", bubbles: true }}));
    const script = performance.now() - start;
    {DRAWN}
    taken.push([script, performance.now() - start]);
  }}
  return taken;
}}"""


def various(steps: int = 256) -> ag.Tensor:
    """A chain in which nothing repeats."""
    rng, x = np.random.default_rng(0), ag.tensor(np.linspace(0.1, 1, 12), requires_grad=True, name="x")
    y = x
    for k in range(steps):
        y = (ag.tanh(y), y * x, ag.exp(-y), y + float(k), ag.sigmoid(y))[rng.integers(5)]
    return y.sum()


def measured(tab: Any, path: Path) -> str:
    """The figures of one page."""
    loads = []
    for _ in range(5):
        start = time.perf_counter()
        tab.goto(path.as_uri())
        tab.wait_for_selector("#app[data-step]")
        tab.evaluate(f"async () => {{ {DRAWN} }}")
        loads.append(time.perf_counter() - start)
    script, painted = (statistics.median(column) for column in zip(*tab.evaluate(STEPS), strict=True))
    return f"{statistics.median(loads):.2f} | {script:.0f} | {painted:.0f}"


def main() -> None:
    """Print a table."""
    head = "| graph | nodes | written in, s | shown after, s | script a step, ms | with painting, ms |"
    print(f"{head}\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for make, size in ((recurrent, 60), (chain, 302), (various, 256), (residual, 20)):
            y = make(size)
            y = y if y.size == 1 else y.sum()
            tab = browser.new_page(viewport={"width": 1300, "height": 900})
            for form, expand in (("folded", False), ("opened", True)):
                start = sum(os.times()[:4])  # with Graphviz, a process of its own
                path = ag.page(y, expand=expand).save(Path(folder, f"{form}.html"))
                taken, nodes = sum(os.times()[:4]) - start, len(ag.Graph(y))
                print(f"| {make.__name__}, {form} | {nodes} | {taken:.1f} | {measured(tab, path)} |", flush=True)
            tab.close()
        browser.close()


if __name__ == "__main__":
    main()
