"""The README: every block runs and shows what it says, as doctests, at a plain prompt and from a file."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autograd_bn.__main__ import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, flags=re.S | re.M)


def snippets():
    return "\n".join(blocks("pycon"))


def test_every_python_block_runs_and_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(blocks("pycon")) > 5
    test = doctest.DocTestParser().get_doctest(snippets(), {}, "README.md", "README.md", 0)
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert results.failed == 0


def test_every_python_block_runs_at_a_plain_prompt(tmp_path):
    examples = doctest.DocTestParser().get_examples(snippets())
    typed = "".join([example.source + "\n" * (example.source.count("\n") > 1) for example in examples])
    command = [sys.executable, "-i", "-q", "-W", "error"]
    done = subprocess.run(command, input=typed, capture_output=True, text=True, cwd=tmp_path)
    printed = "".join([example.want for example in examples if not example.exc_msg])
    assert done.stdout.split() == printed.split(), done.stderr
    assert done.stderr.count("Traceback") == len([example for example in examples if example.exc_msg])


def test_the_broken_file_is_judged_as_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source, printed = blocks("python")[0], blocks("text")[0]
    assert len([line for line in source.splitlines() if line]) == 10
    Path("layer.py").write_text(source)
    assert main(["check", "layer.py"]) == 1
    assert capsys.readouterr().out.split() == printed.split()


def test_the_pytorch_file_prints_what_it_says(tmp_path):
    pytest.importorskip("torch")
    _, source = blocks("python")
    _, printed = blocks("text")
    (tmp_path / "norm.py").write_text(source)
    command = [sys.executable, "-W", "error", "norm.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == printed, done.stderr


def test_it_is_short_and_says_nothing_before_it_is_explained():
    prose = re.sub(r"^```.*?^```$|^\|.*?$", "", README, flags=re.S | re.M)
    assert len(prose.split()) < 1500
    assert not re.search("referee|cotangent|share", prose, re.I)


def test_its_picture_moves_and_is_small():
    picture = (ROOT / "notebooks" / "pictures" / "stepping.png").read_bytes()
    assert len(picture) < 1_000_000
    frames = int.from_bytes(picture[picture.index(b"acTL") + 4 :][:4])
    assert frames >= 8


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_link_to_a_file_leads_somewhere(target):
    assert (ROOT / target).exists()
