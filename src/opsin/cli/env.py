"""`opsin env`: what a bug report, or a number measured here, needs to know about this machine."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from opsin import __version__
from opsin.cli._frame import Json, emit

NAMES = ("env",)
HELP = "Show versions, processor, accelerators and settings of this machine."
ORDER = 900

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "KMP_AFFINITY",
    "CUDA_VISIBLE_DEVICES",
)
INSTRUCTIONS = re.compile(r"^(sse4_2|avx|avx2|fma|f16c|avx512\w*|avx_vnni|amx_\w+|neon|asimd\w*|sve\w*|bf16|i8mm)$")
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)


def command(json: Json = False) -> None:
    """Show versions, processor, accelerators and settings of this machine.

    Works whatever is missing or broken: a package that is not installed is shown as such.
    """
    facts = gather()
    emit(facts, json, lambda: as_text(facts))


def gather() -> dict[str, Any]:
    """Everything that `opsin env` shows, as plain values; what cannot be found out is None."""
    return {
        "opsin": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "packages": packages(),
        "processor": processor(),
        "memory": memory(),
        **torch_facts(),
        "folders": folders(),
        "variables": variables(os.environ),
    }


def packages() -> dict[str, str | None]:
    """Installed version of each package that opsin can use (from its own metadata), None where it is not installed."""
    try:
        requirements = metadata.requires("opsin") or []
    except metadata.PackageNotFoundError:
        requirements = ["torch", "torchvision", "timm", "numpy", "pillow"]
    wanted = [text for text in requirements if "extra == 'dev'" not in text.replace('"', "'")]
    names = dict.fromkeys(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in wanted)
    return {name: _version(name) for name in names if name != "opsin"}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor() -> dict[str, Any]:
    """Name, cores that this process may use, and the instruction sets that decide speed and exact bits."""
    details = _cpuinfo()
    flags = (details.get("flags") or details.get("Features") or "").split()
    may_use = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": details.get("model name") or platform.processor() or None,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "cores_usable": may_use,
        "instructions": sorted(flag for flag in flags if INSTRUCTIONS.match(flag)),
    }


def _cpuinfo() -> dict[str, str]:
    text = _read("/proc/cpuinfo").partition("\n\n")[0]  # the first core stands for all
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def memory() -> dict[str, int | None]:
    """Bytes of memory: of the machine, free for use now, and the limit of the container, where there is one."""
    total: int | None = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return {
        "total_bytes": total,
        "available_bytes": int(available[1]) * 1024 if available else None,
        "limit_bytes": int(limit) if limit.isdigit() else None,
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def torch_facts() -> dict[str, Any]:
    """Accelerators and torch's own view of the processor; the reason, if torch cannot be imported."""
    try:
        import torch

        from opsin.engine.precision import cpu_has_bf16
    except (ImportError, OSError) as error:  # OSError: a library that torch links to is missing
        return {"accelerators": [], "torch": {"error": f"{type(error).__name__}: {error}"}}
    accelerators: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        capability = f"{device.major}.{device.minor}"
        accelerators.append(
            {
                "device": f"cuda:{index}",
                "name": device.name,
                "memory_bytes": device.total_memory,
                "capability": capability,
            }
        )
    if torch.backends.mps.is_available():
        accelerators.append({"device": "mps", "name": "Apple GPU", "memory_bytes": None, "capability": None})
    return {
        "accelerators": accelerators,
        "torch": {
            "build": torch.__version__,
            "cuda": torch.version.cuda,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cpu_bf16": cpu_has_bf16(),
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
        },
    }


def folders() -> dict[str, str]:
    """Where downloads are kept, and the ledger of looks at test parts."""
    from opsin.data.home import cache_home, home

    return {"downloads": str(cache_home()), "ledger": str(home())}


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that change what opsin does; values that may be secret are not shown."""
    names = [name for name in environment if name.startswith("OPSIN_") or name in THREAD_VARIABLES]
    return {name: "(hidden)" if SECRET.search(name) else environment[name] for name in sorted(names)}


def as_text(facts: Mapping[str, Any]) -> str:
    """The facts for people: one line each."""
    lines = list(_lines(facts))
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in lines)


def _lines(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            found += _lines(value, f"{prefix}{name}." if name != "packages" else "")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            found += [(prefix + name, ", ".join(_shown(key, part) for key, part in item.items())) for item in value]
        else:
            found.append((prefix + name, _shown(name, value)))
    return found


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.endswith("_bytes"):
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | Mapping):
        return " ".join(str(part) for part in value) or "none"
    return str(value)
