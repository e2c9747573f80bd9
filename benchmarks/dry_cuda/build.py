"""Build the CUDA runtime that needs no GPU (runtime.c), against the CUDA build of torch that is installed.

Needs gcc and nm (Debian: build-essential), and torch with its CUDA libraries from pip; no driver, no toolkit.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("runtime.c")
LIBRARIES = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_cuda_linalg.so")
STUBBED = re.compile(r"(cuda|cublas|cudnn|nccl|cusparse|cusolver|cufft)[A-Z]\w*|_?_?cuda\w+")
REGISTRATION = re.compile(r"__cuda(Register|Unregister|InitModule)")  # CUDA's own do this without a driver
TEXTS = re.compile(r"Error(String|Name)|StatusString|ncclGetLastError")
# What crt/host_defines.h, which pip's headers lack, would define for a device compiler.
QUALIFIERS = (
    "CUDARTAPI", "__device_builtin__", "__device_builtin_texture_type__", "__device_builtin_surface_type__",
    "__builtin_align__(n)", "__align__(n)", "__host__", "__device__", "__cudart_builtin__",
)  # fmt: skip


def build(folder: Path) -> dict[str, str]:
    """Compile into a folder; return the environment that a dry run wants.

    Raises:
        SystemExit: where torch has no CUDA build, or there is no compiler, in one line.
    """
    torch_folder = package_folder("torch")
    if torch_folder is None or not (torch_folder / "lib" / LIBRARIES[0]).is_file():
        sys.exit("a dry run wants the CUDA build of torch (pip install torch); this one is for CPUs")
    (headers,) = torch_folder.parent.glob("nvidia/cu[0-9]*/include")
    (folder / "crt").mkdir(parents=True, exist_ok=True)
    (folder / "crt/host_defines.h").write_text("".join(f"#define {each}\n" for each in QUALIFIERS))
    runtime = folder / "runtime.o"
    compile_c(SOURCE, runtime, "-c", f"-I{folder}", f"-I{headers}")
    there = set(symbols(runtime, "--defined-only"))
    expected = {name for library in LIBRARIES for name in symbols(torch_folder / "lib" / library, "--undefined-only")}
    bitsandbytes = package_folder("bitsandbytes")
    for library in sorted(bitsandbytes.glob("libbitsandbytes_cuda13*.so")) if bitsandbytes else []:
        expected |= set(symbols(library, "--undefined-only"))
    stubs = sorted(name for name in expected - there if STUBBED.fullmatch(name) and not REGISTRATION.match(name))
    (folder / "stubs.c").write_text("static long next = 50000;\n" + "".join(map(stub, stubs)))
    compile_c(folder / "stubs.c", folder / "libdrycuda.so", "-shared", str(runtime), "-lpthread")
    # torch asks for the driver's library by name; what it finds there is called for kernels only.
    driver = sorted(set(re.findall(r"\b(cu[A-Z]\w+)\(", (headers / "cuda.h").read_text())))
    (folder / "driver.c").write_text("".join(f"int {name}() {{ return 0; }}\n" for name in driver))
    compile_c(folder / "driver.c", folder / "libcuda.so.1", "-shared", "-Wl,-soname,libcuda.so.1")
    return {
        "LD_PRELOAD": str(folder / "libdrycuda.so"),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")])),
        "DS_ACCELERATOR": "cuda",
        # Sums that no kernel has made are zero, and DeepSpeed asserts that a norm is not.
        "PYTHONOPTIMIZE": "1",
    }


def stub(name: str) -> str:
    """Return a function in C that succeeds; a text where one is asked for, a handle where one is made."""
    if TEXTS.search(name):
        return f'const char *{name}() {{ return "no GPU is here"; }}\n'
    if "Create" in name and not name.startswith("cuda"):
        return f"int {name}(void **made) {{ *made = (void *)++next; return 0; }}\n"
    return f"int {name}() {{ return 0; }}\n"


def package_folder(name: str) -> Path | None:
    """Return where a package lies, without importing it."""
    spec = find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def symbols(library: Path, which: str) -> list[str]:
    """Return the names of a library's functions, without versions."""
    dynamic = ["-D"] if ".so" in library.name else []
    lines = run(["nm", *dynamic, which, str(library)]).splitlines()
    return [line.split()[-1].split("@")[0] for line in lines]


def compile_c(source: Path, target: Path, *more: str) -> None:
    """Compile a file."""
    run(["gcc", "-O1", "-fPIC", "-w", str(source), *more, "-o", str(target)])


def run(command: list[str]) -> str:
    """Return what a command prints; end with its first complaint if it fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    except FileNotFoundError:
        sys.exit(f"a dry run wants {command[0]} (Debian: apt install build-essential)")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{command[0]} failed: {error.stderr.strip().splitlines()[0]}")
