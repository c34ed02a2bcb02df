"""From which size on something is done another way: measured, and here, so that a test can move them.

Counted in elements, rows or bytes. Results may differ by their last bits on the two sides of those above the memory's.
"""

# Up to so many elements NumPy's kernels keep what they make of an array, instead of making it again.
DIRECT = 1 << 17
# From so many on a compiled call is quicker than NumPy's.
COMPILED = 1 << 12
# Of a tile: fewer stay in a nearer cache, but each tile costs a dozen calls. Short rows are folded side by side into
# lines, because NumPy's inner loops are slow on less than its buffer's 2^13, if there are enough lines to share what
# the folding costs.
TILE, TILE_NUMBA = 1 << 17, 1 << 19
LINE = 1 << 13
FOLDED = 1 << 15
FEWEST_LINES = 8
SHORTEST_RUN = 32
# Up to so many elements a product with ones adds rows quicker than a sum, and by one thread of BLAS, whatever it has.
PRODUCT = 1 << 13
# Elements of a run that are added in one go.
RUN = 1 << 14
# From so many on several threads pay, or one compiled call does no longer.
SHARED_NUMPY, SHARED_NUMBA = 1 << 18, 1 << 20
# In bytes: memory of less stays with the allocator, of more goes back to the system at once.
SMALLEST_ROOM, LARGEST_ROOM = 1 << 17, 1 << 27
# How much memory is held unused: in bytes, and in rooms.
HELD, ROOMS = 1 << 29, 1 << 7
