"""Several processes that share the work of one command, started by `torchrun` or `accelerate launch`.

Work is cut into the same parts whatever the number of processes, and part k goes to process k modulo their number. Noise
belongs to a sample, so the parts are the same bits on one machine and on many of its kind.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

Part = TypeVar("Part")


@dataclass(frozen=True)
class Ranks:
    """This process among `size`: the first one (`main`) writes and speaks."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def agreed(self, value: Any) -> Any:
        """What the first process says."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def map(self, parts: Sequence[Part], function: Callable[[Part], Tensor]) -> list[Tensor] | None:
        """function(part) for all parts, in their order, on the first process; None on the others, which made their share."""
        made = [(k, function(parts[k])) for k in range(self.rank, len(parts), self.size)]
        if self.size > 1:
            from accelerate.utils import gather_object

            made = gather_object(made)
        return [tensor for _, tensor in sorted(made, key=lambda entry: entry[0])] if self.main else None


def ranks(cpu: bool = True) -> Ranks:
    """The processes that were launched together; one alone where none were."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    from accelerate import PartialState

    state = PartialState(cpu=cpu)
    return Ranks(state.process_index, state.num_processes)
