"""The hot operations: plain functions on arrays, each with a reference that tests hold equal to it."""

from jhsae.ops.experts import Kernel as Kernel
from jhsae.ops.experts import decode_atoms as decode_atoms
from jhsae.ops.experts import decode_rows as decode_rows
from jhsae.ops.experts import encode_atoms as encode_atoms
from jhsae.ops.gram import off_diagonal_mean as off_diagonal_mean
from jhsae.ops.gram import row_norms as row_norms
from jhsae.ops.gram import sum_of_squared_inner as sum_of_squared_inner
from jhsae.ops.gram import unit_rows as unit_rows
from jhsae.ops.jump import jump_relu as jump_relu
from jhsae.ops.jump import step as step
from jhsae.ops.topk import Method as Method
from jhsae.ops.topk import largest as largest
from jhsae.ops.topk import topk as topk
