"""The backward pass written out: NumPy code in the author's names, read off the recorded graph and judged.

A forward pass is recorded with its backward pass (`tracing`), at other lengths and numbers too (`lengths`). What the
recordings have in common are expressions, made simple (`expressions`), of which some get a name and a line (`writer`),
and which are printed (`text`, `numbers`): as a module of its own (`module`), or in the place of an author's backward
pass (`answer`), which takes, reads and leaves what his does (`author`). That is run, held against the recordings and
judged before it is handed out (`Writer.derived`).
"""

from .answer import solution as solution
from .derived import Derivation as Derivation
from .module import write_backward as write_backward
