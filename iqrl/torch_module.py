"""Any torch.nn.Module as a network of a `ParameterGroup`: a recurrent cell, a convolution, attention.

    ParameterGroup({"dynamics": TorchModule(lambda: MyModule(64, 6))}, dtype)

An update is a pure function of parameters that come in from outside, so a module is used for its `forward` alone,
through `torch.func.functional_call`. docs/examples/gru_dynamics.py is an agent with one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from iqrl.networks import Parameters


@dataclass(frozen=True)
class TorchModule:
    """The module that `build` makes, as a description: `forward` of parameters from outside.

    Attributes:
        build: makes the module, initialised as it should be; called once for its shapes and once for every seed.
        low_precision: run it in the group's dtype, parameters and inputs; by default it stays in float32, for
            torch's modules do not mix the two.

    Raises:
        TypeError: for a module that is no function of its parameters and inputs.
    """

    build: Callable[[], nn.Module]
    low_precision: bool = False
    module: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        module = self._built(0)
        check_pure(module)
        object.__setattr__(self, "module", module)

    def _built(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.random.default_generator.manual_seed(seed)
            return self.build()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {k: tuple(v.shape) for k, v in self.module.named_parameters()}

    def castable(self, name: str) -> bool:
        return self.low_precision

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Parameters of a module built anew, seeded from the generator; global random state stays as it is."""
        built = self._built(int(torch.randint(2**63 - 1, (), generator=generator)))
        return {k: v.detach().float() for k, v in built.named_parameters()}

    def __call__(self, parameters: Parameters, *inputs: Tensor, hidden: list[Tensor] | None = None) -> Any:
        """What `forward` returns of the inputs, in float32. Hidden layers are not listed."""
        if self.low_precision:
            dtype = next(iter(parameters.values())).dtype
            inputs = tuple(x.to(dtype) for x in inputs)
        result = torch.func.functional_call(self.module, dict(parameters), inputs)
        return tree_map(torch.Tensor.float, result) if self.low_precision else result


def check_pure(module: nn.Module) -> None:
    """Raises TypeError, in one line, unless a module is a function of its parameters and inputs."""
    kind = type(module).__name__
    for name, _ in module.named_buffers():
        raise TypeError(f"{kind}: {name!r} is a buffer, which an update could not change; expected parameters alone, "
                        "such as layer or group norm in place of batch norm")  # fmt: skip
    for name, part in module.named_modules():
        rate = part.p if isinstance(part, nn.modules.dropout._DropoutNd) else getattr(part, "dropout", 0.0)
        if isinstance(rate, float) and rate > 0.0 and part.training:
            where = name or kind
            raise TypeError(f"{kind}: {where!r} drops out at random; expected a rate of 0, or a module in eval mode")
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            raise TypeError(f"{kind}: {name!r} is frozen; expected parameters that are all learned")
    if not any(True for _ in module.parameters()):
        raise TypeError(f"{kind}: has no parameters; expected some")
