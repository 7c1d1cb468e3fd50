"""`python -m fokker.train recipe.yaml [key=value ...]`: what `accelerate launch -m fokker.train` starts in each process."""

import sys

from fokker.errors import FokkerError
from fokker.train.recipe import main

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m fokker.train recipe.yaml [key=value ...]")
    try:
        main(sys.argv[1], sys.argv[2:])
    except FokkerError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
