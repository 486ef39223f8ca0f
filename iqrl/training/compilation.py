"""Compiling an agent's functions: once for each size, by one process of this machine at a time, and saying so."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import inspect
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iqrl.errors import one_line

BEGUN = "begun"
Watch = Callable[[str], None]  # gets what is being compiled, such as "compiling update_critic", and "" once it is


class Compiled:
    """A function of dicts of tensors, compiled at its first call for each set of their keys and sizes.

    What cannot be compiled, tried twice, runs eager, with one warning that says why.

    Args:
        stage: its name, in messages.
        device: the kind of device of its tensors.
        identity: what else than its sizes tells its code from that of others.
    """

    def __init__(
        self,
        stage: str,
        function: Callable[..., Any],
        device: str = "cpu",
        identity: object = None,
        watch: Watch = lambda what: None,
    ) -> None:
        self.stage, self.function, self.watch = stage, function, watch
        self.identity = stage, device, identity
        self.runs: dict[tuple[Any, ...], Callable[..., Any]] = {}  # by keys and size: what is compiled, or eager
        # On a CPU one C++ file a stage, not one a kernel: each costs half a second before its first line is compiled.
        # What the processor lists is taken as known to the compiler: to try that takes 4 to 6 s, and one of C++20
        # knows it.
        self.options: dict[str, Any] = {"cpp_wrapper": True, "cpp.vec_isa_ok": True} if device == "cpu" else {}
        # Of one function's code torch keeps 8 compilations in all, unless told to count each `torch.compile` by itself;
        # here stages share their code, and each is compiled once for every number of seeds that run together.
        self.counting: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": 64}
        if self.counting.keys() <= inspect.signature(torch.compile).parameters.keys():  # since torch 2.13 or so
            # Nothing but keys and sizes changes, and each set of these has a `torch.compile` of its own. To look after
            # every attribute of the agent takes 0.3 ms a call.
            self.options["guard_filter_fn"] = torch.compiler.keep_tensor_guards_unsafe
        else:
            self.counting = {}
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)

    def __call__(self, *arguments: Mapping[str, Tensor]) -> Any:
        size = tuple((*group, *(v.shape for v in itertools.islice(group.values(), 1))) for group in arguments)
        run = self.runs.get(size)
        return run(*arguments) if run else self._first(size, arguments)

    def _first(self, size: tuple[Any, ...], arguments: tuple[Mapping[str, Tensor], ...]) -> Any:
        shapes = [(k, tuple(v.shape), v.dtype) for group in arguments for k, v in group.items()]
        key = hashlib.sha256(repr((self.identity, torch.get_num_threads(), shapes)).encode()).hexdigest()[:32]
        compiled = torch.compile(self.function, fullgraph=True, dynamic=False, options=self.options, **self.counting)
        for again in (True, False):  # a C++ compiler dies of Ctrl-C and of Slurm's signal: eager is not bitwise
            try:
                with alone(key, self.stage, self.watch):
                    types_known_once()
                    result = compiled(*arguments)
                self.runs[size] = compiled
                return result
            except Exception as error:  # whatever the compiler or the machine's tool chain raises
                if not again:
                    print(f"warning: {self.stage} runs eager, compiling it failed: {one_line(error)}", file=sys.stderr)
        self.runs[size] = self.function
        return self.function(*arguments)


@functools.cache
def types_known_once() -> None:
    """Have torch's compiler list the types of operations' results once, not for each operation it generates code for.

    It keeps one such list and makes it anew each time it looks at it (torch 2.13), an eighth of its own time.
    """
    with contextlib.suppress(ImportError, AttributeError):  # as the list may be gone in another version
        from torch._inductor.codegen.common import pointwise_overrides_data
        from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
        from torch._inductor.utils import op_dtype_propagation_rules

        make, made = DtypePropagationOpsHandler.__init__, (-1, -1)

        def make_once(self: Any) -> None:
            nonlocal made
            known = len(op_dtype_propagation_rules), len(pointwise_overrides_data)
            if made != known:
                make(self)
                made = known

        DtypePropagationOpsHandler.__init__ = make_once  # type: ignore[method-assign]


@contextlib.contextmanager
def alone(key: str, stage: str, watch: Watch) -> Iterator[None]:
    """Keep other processes of this machine from compiling the same, and say what takes so long.

    They wait, and then find it in the cache. The lock's file, beside that cache, holds the seconds that it took last,
    and the word BEGUN until it has been compiled and loaded: a process that finds it there, with the lock free, knows
    that another one died meanwhile, and what it may have left half written.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir()) / "compiling"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / key, "a+") as file:
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            watch(f"waiting for another process to compile {stage}{_last(file)}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: then it is compiled twice, and nobody knows who died
            locked = False
        watch(f"compiling {stage}{_last(file)}")
        again = locked and _read(file).endswith(BEGUN)
        if again:
            drop_libraries(folder.parent, os.fstat(file.fileno()).st_mtime)
        elif locked:
            file.write(f" {BEGUN}")
            file.flush()
        try:
            begin = time.monotonic()
            yield
            file.truncate(0)
            file.write(f"{time.monotonic() - begin:.0f}")
        except Exception:
            if again:  # what was half written is gone: it is something else, and the libraries of others may stay
                file.truncate(0)
            raise
        finally:
            watch("")


def drop_libraries(cache: Path, since: float) -> None:
    """Delete the compiled libraries that a cache got since then; they are compiled again where they are needed.

    A linker that is killed leaves part of one, and whoever loads that dies of SIGBUS. Processes that have loaded a
    whole one keep it.
    """
    for pattern in ("*.so", "*.gch"):
        for path in cache.rglob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime >= since:
                    path.unlink()


def _read(file: Any) -> str:
    file.seek(0)
    return str(file.read())


def _last(file: Any) -> str:
    """Such as ", 40 s last time"."""
    seconds = _read(file).removesuffix(BEGUN).strip()
    return f", {seconds} s last time" if seconds else ", for the first time here"
