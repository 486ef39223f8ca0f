"""Pictures of a MuJoCo model, where the machine can draw."""

import warnings
from typing import Any

from iqrl.errors import InputError


def renderer(model: Any, height: int, width: int) -> Any:
    """An off-screen renderer, also in a process where MUJOCO_GL=disable kept rendering from being loaded."""
    try:
        from mujoco.rendering.classic import gl_context

        if not hasattr(gl_context, "GLContext"):
            from mujoco.egl import GLContext

            gl_context.GLContext = GLContext
        from mujoco.rendering.classic.renderer import Renderer

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Renderer(model, height, width)
    except ValueError as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(f"picture of {height}x{width}: {first_line}") from None
    except Exception as error:  # each backend and each missing library fails in its own way
        raise InputError(
            f"rendering: no working renderer ({type(error).__name__}: {error}); install libegl1 and "
            "libgl1-mesa-dri, or set MUJOCO_GL to egl, osmesa or glfw"
        ) from None
