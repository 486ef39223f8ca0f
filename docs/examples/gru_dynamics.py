"""iQRL with a GRU cell for its dynamics, a torch.nn.Module. Run it with agent=docs/examples/gru_dynamics.py."""

import torch
from torch import nn

from iqrl.agent import register
from iqrl.iqrl import IQRL
from iqrl.networks import ParameterGroup
from iqrl.torch_module import TorchModule


class GRUDynamics(nn.Module):
    """d(z, a): the latent is the state of the cell, the action its input."""

    def __init__(self, latent_width, action_dim):
        super().__init__()
        self.cell = nn.GRUCell(action_dim, latent_width)

    def forward(self, z, action):  # (B, Z), (B, A) -> (B, Z)
        return self.cell(action, z) - z  # iQRL adds z and quantises: f(z + d(z, a))


@register("gru_iqrl")
class GRUIQRL(IQRL):
    def __init__(self, config, spec, dtype=torch.float32):
        super().__init__(config, spec, dtype)
        dynamics = TorchModule(lambda: GRUDynamics(self.width, spec.action_dim))
        self.world = ParameterGroup({**self.world.networks, "dynamics": dynamics}, dtype)
