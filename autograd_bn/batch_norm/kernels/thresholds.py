"""From which size on something is done another way: measured, and here, so that a test can move them.

Counted in elements, rows or bytes. Results may differ by their last bits on the two sides of those above the memory's.
"""

# Up to so many elements an array is computed as a whole, with NumPy's kernels and with numba's: quicker than in blocks.
DIRECT_NUMPY, DIRECT_NUMBA = 1 << 17, 1 << 14
# From so many on a compiled call is quicker than NumPy's.
COMPILED = 1 << 12
# Of a block: fewer stay in a nearer cache, but each block costs dozens of calls, between which threads wait for each
# other. Short rows are folded side by side into lines, because NumPy's inner loops are slow on less, as long as there
# are enough lines to share what the folding costs.
BLOCK = 1 << 17
LINE = 1 << 13
FOLDED = 1 << 15  # elements up to which it costs more
FEWEST_LINES = 8
FEWEST_ROWS = 64
SHORTEST_RUN = 32  # at most BLOCK: only a long run is cut
# From so many on several threads pay, or one compiled call does no longer.
SHARED_NUMPY, SHARED_NUMBA = 1 << 18, 1 << 20
# In bytes: memory of less stays with the allocator, of more goes back to the system at once.
SMALLEST_ROOM, LARGEST_ROOM = 1 << 17, 1 << 27
# How much memory is held unused: in bytes, and in rooms.
HELD, ROOMS = 1 << 29, 1 << 7
