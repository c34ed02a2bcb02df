"""The referee: is a hand-written backward pass right, and if not, where is the mistake and how is it repaired?"""

from .judge import check_backward as check_backward
from .verdict import Verdict as Verdict
