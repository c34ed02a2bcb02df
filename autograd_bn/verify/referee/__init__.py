"""The referee: is a hand-written backward pass right, and if not, where is the mistake and how is it repaired?

Files: `names` says what names mean. `load` runs a file, `entries` finds its pairs, `guesses` has what their inputs may
be, `trials` tries them, and `discover` judges each. Pairs: `author` reads what was written, `conventions` how it is
called, `calls` calls it, `parameters` finds what it reads and leaves on objects, `frameworks` have their own. Runs:
`held`, `outside` and `pure` keep the user's things safe, `inputs` chooses what with, `returned` matches gradients,
`truth` knows them, `sampling` makes them. Verdicts: `judge` asks `explain`, `paths`, `mistakes` (factors of a term) and
`meant`, `repair` tries the edits of `slips`.
"""

from .judge import check_backward as check_backward
from .verdict import Verdict as Verdict
