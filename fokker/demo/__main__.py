"""`python -m fokker.demo [...]` is `fokker demo [...]`."""

import sys

from fokker.cli import run

if __name__ == "__main__":
    sys.argv.insert(1, "demo")
    run()
