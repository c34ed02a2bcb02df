"""Makes stepping.png, the README's animated picture: the page walks back through batch norm's variance.

`python notebooks/pictures/stepping.py` needs Chromium on the path, `pip install playwright pillow`.
"""

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

import autograd_bn as ag

SIZE = {"width": 1080, "height": 600}
SECONDS = 2.0
COLOURS = 128


def page(path: Path) -> None:
    """Batch norm of six rows of three features, opened into its nine operations."""
    rng = np.random.default_rng(0)
    x = ag.tensor(rng.normal(size=(6, 3)).round(1), requires_grad=True, name="x")
    gamma = ag.tensor([1.5, 0.5, 2.0], requires_grad=True, name="gamma")
    beta = ag.tensor([0.1, 0.2, 0.3], requires_grad=True, name="beta")
    y = ag.batch_norm(x, gamma, beta, form="composed")
    y.name = "y"
    ag.render(y, path, grads=rng.normal(size=(6, 3)).round(1))


def frames(path: Path) -> list[Image.Image]:
    """A screenshot of every step of the backward pass."""
    shots = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport=SIZE, reduced_motion="reduce")
        tab.goto(path.as_uri())
        tab.keyboard.press("]")  # the start of the backward pass
        step = None
        while step != (step := tab.get_attribute("#app", "data-step")):
            tab.wait_for_timeout(300)
            shots.append(Image.open(io.BytesIO(tab.screenshot())).convert("RGB"))
            tab.keyboard.press("ArrowRight")
        browser.close()
    return shots


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        page(Path(folder, "page.html"))
        shots = frames(Path(folder, "page.html"))
    palette = shots[-1].quantize(COLOURS)
    first, *others = [shot.quantize(palette=palette, dither=Image.Dither.NONE) for shot in shots]
    target = Path(__file__).with_suffix(".png")
    first.save(target, save_all=True, append_images=others, duration=int(1000 * SECONDS), loop=0, optimize=True)
    print(f"{target}: {len(shots)} steps, {target.stat().st_size:,} bytes")
