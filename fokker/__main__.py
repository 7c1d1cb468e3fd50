"""`python -m fokker` is the command line."""

from fokker.cli import run

if __name__ == "__main__":
    run()
