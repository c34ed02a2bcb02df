"""The referee: is a hand-written backward pass right, and if not, where is the mistake and how is it repaired?

`load` and `discover` find the pairs of a file, `pairs` says how each is called, `inputs` guesses what with. `run` calls
it, `held`, `outside` and `pure` keep the user's things safe, `returned` matches gradients, `truth` knows them. `judge`
asks `explain`, `paths` and `mistakes` (factors of a term), `repair` tries the edits of `slips`, `verdict` answers.
"""

from .judge import check_backward as check_backward
from .verdict import Verdict as Verdict
