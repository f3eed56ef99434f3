"""The hot operations: plain functions on arrays, each with a reference that tests hold equal to it.

All are exact and have gradients of their own. The router encodes a chunk of tokens, selects, sums the L1 penalty and
its gradient, and drops the chunk: no batch x experts array survives. (token, expert) pairs are sorted by expert into
tiles, so that each expert's matrices meet their tokens in one product, under any imbalance and without a capacity.
Orthogonality penalties go through embed x embed Gram matrices.

Keys of ``jhsae train``: ``sae.kernel`` is ``auto``, ``tiles``, ``dense`` or ``gather`` (the plain reference),
``route.topk`` one of eight ways to select, ``precision=bfloat16`` rounds the operands of products, and
``optimizer.momentum=bfloat16`` halves Adam's first moment.
"""

from jhsae.ops.chunks import sized_for as sized_for
from jhsae.ops.experts import Kernel as Kernel
from jhsae.ops.experts import decode_atoms as decode_atoms
from jhsae.ops.experts import decode_rows as decode_rows
from jhsae.ops.experts import decode_tree as decode_tree
from jhsae.ops.experts import encode_atoms as encode_atoms
from jhsae.ops.experts import kernel_for as kernel_for
from jhsae.ops.forest import Forest as Forest
from jhsae.ops.gram import off_diagonal_mean as off_diagonal_mean
from jhsae.ops.gram import row_norms as row_norms
from jhsae.ops.gram import sum_of_squared_inner as sum_of_squared_inner
from jhsae.ops.gram import unit_rows as unit_rows
from jhsae.ops.jump import heaviside as heaviside
from jhsae.ops.jump import jump_relu as jump_relu
from jhsae.ops.parameters import Decoder as Decoder
from jhsae.ops.parameters import Encoder as Encoder
from jhsae.ops.parameters import ExpertEncoders as ExpertEncoders
from jhsae.ops.precision import Precision as Precision
from jhsae.ops.precision import compute_in as compute_in
from jhsae.ops.pursuit import Pursued as Pursued
from jhsae.ops.pursuit import Search as Search
from jhsae.ops.pursuit import pursue as pursue
from jhsae.ops.pursuit import schedule as schedule
from jhsae.ops.pursuit import screened as screened
from jhsae.ops.pursuit import swept as swept
from jhsae.ops.router import Routed as Routed
from jhsae.ops.router import route as route
from jhsae.ops.select import largest as largest
from jhsae.ops.select import largest_of_rows as largest_of_rows
from jhsae.ops.sharding import DATA as DATA
from jhsae.ops.sharding import EXPERT as EXPERT
from jhsae.ops.sharding import HOST as HOST
from jhsae.ops.sharding import ROWS as ROWS
from jhsae.ops.sharding import SHARDS as SHARDS
from jhsae.ops.sharding import ShardingKind as ShardingKind
from jhsae.ops.sharding import constrain as constrain
from jhsae.ops.sharding import local_slice as local_slice
from jhsae.ops.sharding import shard_rows as shard_rows
from jhsae.ops.sharding import sharded_over as sharded_over
from jhsae.ops.topk import Method as Method
from jhsae.ops.topk import recall as recall
from jhsae.ops.topk import row_noise as row_noise
from jhsae.ops.topk import take as take
from jhsae.ops.topk import topk as topk
from jhsae.ops.topk import topk_of_batch as topk_of_batch
