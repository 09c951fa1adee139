"""What the C library does with the memory that a program frees."""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next allocation; without effect where it is not glibc.

    Otherwise it gives large blocks back to the system and asks for them again, and every page of them is a page fault:
    a sixteenth to a fifth of a training step of ViT-B/32 on two cores, and as much time as decoding a photo. The
    process then holds on to the most that it ever used at once.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # older versions refuse more than 32 MiB; and one setting alone would end the automatic ones, which are better
    if mallopt(MMAP_THRESHOLD, 2**30) or mallopt(MMAP_THRESHOLD, 2**25):
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
