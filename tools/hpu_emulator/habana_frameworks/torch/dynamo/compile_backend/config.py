"""Options of the backend, and the environment variables that set their defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

_ON = {"1", "true", "yes", "on", "y", "t"}


@dataclass(frozen=True, slots=True)
class Options:
    """Those that only choose passes of the compiler change nothing in the emulator."""

    use_compiled_recipes: bool = True
    keep_input_mutations: bool = True
    use_eager_fallback: bool = True
    enable_graph_freezing: bool = False
    use_graph_freezing: bool = False
    use_inplace_allreduce: bool = True
    use_inplace_index_copy: bool = True
    inference: bool = True
    enable_sfg: bool = False
    force_static_compile: bool = False
    enable_allreduce_graph_split: bool = True
    reinplace_add: bool = False
    use_boxed_input: bool = True


_VARIABLES = {
    "use_eager_fallback": "PT_HPU_USE_EAGER_FALLBACK",
    "use_inplace_index_copy": "PT_HPU_USE_INPLACE_INDEX_COPY",
    "force_static_compile": "PT_HPU_FORCE_STATIC_COMPILE",
}


def options_of(given: Mapping[str, object] | None) -> Options:
    """Raises ValueError for an option that the backend does not have."""
    names = {field.name for field in fields(Options)}
    chosen: dict[str, bool] = {}
    for name, variable in _VARIABLES.items():
        if text := os.environ.get(variable, "").strip().lower():
            chosen[name] = text in _ON
    for name, value in (given or {}).items():
        if name not in names:
            raise ValueError(
                f"hpu_backend has no option {name!r}; it has {', '.join(sorted(names))}"
            )
        if not isinstance(value, bool):
            raise ValueError(f"option {name!r} of hpu_backend is True or False, not {value!r}")
        chosen[name] = value
    options = replace(Options(), **chosen)
    if options.enable_graph_freezing or options.use_graph_freezing:
        raise NotImplementedError("hpu_backend: the emulator does not freeze graphs")
    return options
