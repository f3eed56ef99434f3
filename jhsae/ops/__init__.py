"""The hot operations: plain functions on arrays, each with a reference that tests hold equal to it."""

from jhsae.ops.chunks import sized_for as sized_for
from jhsae.ops.experts import Kernel as Kernel
from jhsae.ops.experts import decode_atoms as decode_atoms
from jhsae.ops.experts import decode_rows as decode_rows
from jhsae.ops.experts import decode_tree as decode_tree
from jhsae.ops.experts import encode_atoms as encode_atoms
from jhsae.ops.experts import kernel_for as kernel_for
from jhsae.ops.gram import off_diagonal_mean as off_diagonal_mean
from jhsae.ops.gram import row_norms as row_norms
from jhsae.ops.gram import sum_of_squared_inner as sum_of_squared_inner
from jhsae.ops.gram import unit_rows as unit_rows
from jhsae.ops.jump import jump_relu as jump_relu
from jhsae.ops.jump import step as step
from jhsae.ops.precision import Precision as Precision
from jhsae.ops.precision import compute_in as compute_in
from jhsae.ops.router import Encoder as Encoder
from jhsae.ops.router import Inside as Inside
from jhsae.ops.router import Routed as Routed
from jhsae.ops.router import route as route
from jhsae.ops.select import largest as largest
from jhsae.ops.select import largest_of_rows as largest_of_rows
from jhsae.ops.topk import Method as Method
from jhsae.ops.topk import recall as recall
from jhsae.ops.topk import take as take
from jhsae.ops.topk import topk as topk
