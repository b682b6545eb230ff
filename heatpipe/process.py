"""What a process of heatpipe's own asks of the libraries that it has not loaded yet."""

import os
from typing import Final

WISHES: Final = {
    # pyarrow's own allocator keeps what it has freed: 50 MiB more, and no less time.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    # numpy's linear algebra, of which heatpipe uses none, would start threads that wait for work by spinning.
    "OPENBLAS_NUM_THREADS": "1",
}


def prepare_process() -> None:
    """Set what the user has not set. To be called before numpy and pyarrow are imported."""
    for name, value in WISHES.items():
        os.environ.setdefault(name, value)
