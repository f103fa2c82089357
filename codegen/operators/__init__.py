"""Operations without weights: one module each, with its dataclass and its row in `OPERATORS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codegen.graph.ir import Operation
from codegen.operators.add import ADD
from codegen.operators.average_pool import AVERAGE_POOL
from codegen.operators.base import Operator
from codegen.operators.channel_max import CHANNEL_MAX
from codegen.operators.concat import CONCAT
from codegen.operators.expand import EXPAND
from codegen.operators.gather import GATHER
from codegen.operators.global_average_pool import GLOBAL_AVERAGE_POOL
from codegen.operators.gru import GRU
from codegen.operators.layer_normalization import LAYER_NORMALIZATION
from codegen.operators.lookup import LOOKUP
from codegen.operators.lstm import LSTM
from codegen.operators.max_pool import MAX_POOL
from codegen.operators.product import PRODUCT
from codegen.operators.rearrange import REARRANGE
from codegen.operators.requantize import REQUANTIZE
from codegen.operators.scaling import SCALING
from codegen.operators.transpose import TRANSPOSE

OPERATORS: tuple[Operator[Any, Any], ...] = (
    ADD,
    AVERAGE_POOL,
    CHANNEL_MAX,
    CONCAT,
    EXPAND,
    GATHER,
    GLOBAL_AVERAGE_POOL,
    GRU,
    LAYER_NORMALIZATION,
    LOOKUP,
    LSTM,
    MAX_POOL,
    PRODUCT,
    REARRANGE,
    REQUANTIZE,
    SCALING,
    TRANSPOSE,
)

_BY_CLASS: Mapping[type[Operation], Operator[Any, Any]] = {
    each: row for row in OPERATORS for each in (row.real, row.kind)
}


def operator_of(op: Operation) -> Operator[Any, Any]:
    """The row of ``op``, of a float graph or a quantized one."""
    return _BY_CLASS[type(op)]
