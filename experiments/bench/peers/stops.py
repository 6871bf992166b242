"""Where responses end, in torch: TRL's trainer knows one stop id, a workload may have many."""

from collections.abc import Sequence

import torch


def real_tokens(responses_BT: torch.Tensor, stop_ids: Sequence[int]) -> torch.Tensor:
    """True up to the first stop id of each row, that one included; everywhere without stop ids."""
    stops = torch.tensor(stop_ids, dtype=responses_BT.dtype, device=responses_BT.device)
    ended_BT = torch.isin(responses_BT, stops).long()
    return ended_BT.cumsum(dim=1) == ended_BT


def truncate(responses_BT: torch.Tensor, stop_ids: Sequence[int], pad_id: int) -> torch.Tensor:
    """Pads behind the first stop id of each row."""
    return responses_BT.masked_fill(~real_tokens(responses_BT, stop_ids), pad_id)
