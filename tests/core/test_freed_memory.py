import platform
import subprocess
import sys


def test_memory_that_is_freed_is_kept():
    script = (
        "import resource, torch\n"
        "from clipfh.core.freed_memory import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(5): torch.ones(2**22)\n"  # 16 MiB each, less than any version's limit
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "first = faults(); keep_freed_memory()\n"
        "for _ in range(6): faults()\n"  # the heap grows to what a step takes
        "print(first, faults())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 3 if platform.libc_ver()[0] == "glibc" else after <= before
