"""Pictures of MuJoCo scenes, drawn off screen, bitwise those of dm_control's `physics.render`.

A process has one OpenGL context, made at its first picture, and the environments of one task share what is uploaded to
it. dm_control's own contexts are never made: beside another one in the same process, its pictures come out wrong
without an error. MUJOCO_GL chooses the library (egl, osmesa or glfw; EGL where it says nothing or "disable"), and
MUJOCO_EGL_DEVICE_ID the GPU.
"""

import functools
import importlib
import os
import warnings
from typing import Any
from weakref import WeakValueDictionary

import mujoco
import numpy as np

from iqrl.errors import InputError, one_line

_LIBRARIES = ("egl", "osmesa", "glfw")
_MOST_GEOMS = 10_000  # of a scene; more would be left out


class Renderer:
    """A camera on one model.

    Args:
        name: models of equal name are equal, but for what an episode changes.
        model: an `MjModel`.
        height, width: of the picture, at most what the model allows.
        camera: its number in the model.
        fast: no multisampling, shadows or reflections.
    Raises:
        InputError: no OpenGL on this machine, no such camera, or a picture larger than the model allows.
    """

    def __init__(self, name: str, model: Any, height: int, width: int, camera: int, fast: bool = False):
        limit = model.vis.global_
        if height > limit.offheight or width > limit.offwidth:
            raise InputError(
                f"picture of {height}x{width}: the model allows at most {limit.offheight}x{limit.offwidth}"
            )
        if camera >= model.ncam:
            raise InputError(f"camera={camera}: expected one of the {model.ncam} of this task, counted from 0")
        self.height, self.width, self._model = height, width, model
        self._uploaded = _upload(name, model, height, width, fast)
        # As dm_control sets them: the rangefinders' rays are not drawn.
        self._options, self._perturbations = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._options.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = False
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self._scene = mujoco.MjvScene(model, _MOST_GEOMS)
        if fast:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), np.uint8)

    def draw(self, data: Any) -> np.ndarray:
        """The scene of an `MjData`, (height, width, 3) uint8."""
        context = self._uploaded.context
        _opengl().make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        for field in range(self._model.nhfield):  # an episode's terrain, where another environment's may lie
            mujoco.mjr_uploadHField(self._model, context, field)
        mujoco.mjv_updateScene(
            self._model, data, self._options, self._perturbations, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(self._rectangle, self._scene, context)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, context)
        return self._pixels[::-1].copy()  # OpenGL's first row is the lowest


class _Uploaded:
    """What of a model lies in OpenGL's memory: textures, meshes, and buffers to draw into."""

    def __init__(self, model: Any, height: int, width: int, fast: bool):
        # All are read once, here: buffers of the picture's size leave it as it is.
        limit, quality = model.vis.global_, model.vis.quality
        before = limit.offheight, limit.offwidth, quality.offsamples
        limit.offheight, limit.offwidth = height, width
        if fast:
            quality.offsamples = 0
        try:
            _opengl().make_current()
            self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        finally:
            limit.offheight, limit.offwidth, quality.offsamples = before


_shared: WeakValueDictionary[tuple[str, int, int, bool], _Uploaded] = WeakValueDictionary()


def _upload(name: str, model: Any, height: int, width: int, fast: bool) -> _Uploaded:
    key = (name, height, width, fast)
    uploaded = _shared.get(key)
    if uploaded is None:
        try:
            uploaded = _shared[key] = _Uploaded(model, height, width, fast)
        except Exception as error:  # each library, and each part of it that is missing, fails in its own way
            raise InputError(
                f"rendering: no working OpenGL ({one_line(error)}); install libegl1 and "
                "libgl1-mesa-dri (or a GPU's driver with EGL), or set MUJOCO_GL to osmesa or glfw"
            ) from None
    return uploaded


@functools.cache
def _opengl() -> Any:
    """This process's context."""
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    library = chosen if chosen in _LIBRARIES else "egl"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"mujoco.{library}").GLContext(640, 480)
